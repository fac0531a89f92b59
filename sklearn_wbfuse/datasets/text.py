"""SST-2 and AG News as rows of tokens, with an embedding table that is computed from the training text."""

from __future__ import annotations

import csv
import html
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import Bunch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from .files import DatasetError, download, local_file

__all__ = ["embedding_of", "load_ag_news", "load_sst2"]

# The test split of AG News; the hash is that of the file whose MD5 torchtext lists for this address.
_URL = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/test.csv"
_SHA256 = "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699"
_AG_NEWS = "ag_news_7600.csv"
_ROWS = (5500, 500)  # training and validation; the rest is the test split

_WINDOW = 5  # distance of two words that count as a pair
_MIN_COUNT = 2  # occurrences of a word in the vocabulary


def load_sst2(dim: int = 100) -> Bunch:
    """Load SST-2, sentences from film reviews, negative (0) or positive (1), truncated to 56 words.

    The sentences are read from ``sst2_train.tsv``, ``sst2_dev.tsv`` (validation) and ``sst2_test.tsv`` in ``$WBFUSE_DATA/text``,
    which have 6,920, 872 and 1,821 lines. Each line consists of a sentence of lower-case words, separated by spaces, a tab and
    the label. These files are not downloaded.

    Parameters
    ----------
    dim : int
        Dimension of the embedding.

    Returns
    -------
    Bunch
        ``X_train``, ``X_valid``, ``X_test``: int64 tensors of tokens, of shape (n, 56), padded with 0 on the left, so that the
        last state of a recurrent network follows the last word; ``y_train``, ``y_valid``, ``y_test``: int64 tensors of shape
        (n,); ``vocabulary``: the words by token, where 0 is the padding and 1 any word that occurs less than twice in the
        training text; ``embedding``: float32 tensor of shape (len(vocabulary), dim), see Notes.

    Raises
    ------
    DatasetError
        If a file is missing.

    Notes
    -----
    The embedding uses only the training text, without labels. Let C be the counts of pairs of words at most five words apart.
    The matrix ``max(0, log(C_ij C.. / (C_i. C_.j)))`` (PPMI) is truncated to its `dim` largest singular values, U S V', and the
    rows of ``U sqrt(S)`` are normalised to ``sqrt(dim)``. The row of the padding is 0.
    """
    splits = []
    for name in ("train", "dev", "test"):
        lines = _sst2_file(f"sst2_{name}.tsv").read_text(encoding="utf-8").splitlines()
        pairs = [line.rsplit("\t", 1) for line in lines if line.strip()]
        splits.append(([sentence.split() for sentence, _ in pairs], [int(label) for _, label in pairs]))
    return _encode(splits, 56, dim)


def load_ag_news(dim: int = 100) -> Bunch:
    """Load AG News, titles and first sentences of news in four classes, truncated to 60 words.

    The 5,500 training, 500 validation and 1,600 test rows are a fixed random split of the original test split. Words are
    sequences of letters and digits in lower case; each punctuation mark is a separate word.

    The text is read from ``$WBFUSE_DATA/text/ag_news_7600.csv`` if that variable is set. Otherwise a file of 2 MB is downloaded
    once to the cache, ``~/.cache/sklearn_wbfuse`` or ``$XDG_CACHE_HOME/sklearn_wbfuse``.

    Parameters
    ----------
    dim : int
        Dimension of the embedding.

    Returns
    -------
    Bunch
        The same as for `load_sst2`, with rows of 60 tokens; the classes are World, Sports, Business and Sci/Tech.

    Raises
    ------
    DatasetError
        If the file is missing and cannot be downloaded.
    """
    path = local_file(f"text/{_AG_NEWS}") or download(_URL, _SHA256, _AG_NEWS)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(_words(f"{title} {text}"), int(label) - 1) for label, title, text in csv.reader(file)]
    order = np.random.RandomState(0).permutation(len(rows))
    parts = [[rows[i] for i in part] for part in np.split(order, np.cumsum(_ROWS))]
    return _encode([([words for words, _ in part], [label for _, label in part]) for part in parts], 60, dim)


def _sst2_file(name: str) -> Path:
    folder = os.environ.get("WBFUSE_DATA", "")
    path = Path(folder, "text", name)
    if not folder or not path.is_file():
        raise DatasetError(
            f"WBFUSE_DATA must name a folder that contains text/{name}. Got {folder!r}. SST-2 is not downloaded: put "
            "sst2_train.tsv, sst2_dev.tsv and sst2_test.tsv, with lines of sentence, tab and label, into the folder text in it."
        )
    return path


def _words(text: str) -> list[str]:
    r"""Split a text into lower-case words and punctuation marks.

    In the file most entities lack their "&" and are preceded by a space, and newlines are backslashes.

    >>> _words("Shares of Dell &lt;DELL.O&gt; didn #39;t\\rise")
    ['shares', 'of', 'dell', '<', 'dell', '.', 'o', '>', 'didn', "'", 't', 'rise']
    """
    text = html.unescape(re.sub(r"\s(#\d+|quot|amp);", r"&\1;", text).replace("\\", " "))
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _encode(splits: Sequence[tuple[list[list[str]], list[int]]], steps: int, dim: int) -> Bunch:
    """Encode training, validation and test sentences as tokens; return these with their labels."""
    counts = Counter(word for sentence in splits[0][0] for word in sentence)
    words = sorted((word for word, count in counts.items() if count >= _MIN_COUNT), key=lambda word: (-counts[word], word))
    vocabulary = ["<padding>", "<unknown>", *words]
    tokens = {word: token for token, word in enumerate(words, 2)}
    data = Bunch(vocabulary=vocabulary)
    for name, (sentences, labels) in zip(("train", "valid", "test"), splits, strict=True):
        rows = [np.array([tokens.get(word, 1) for word in sentence], np.int64) for sentence in sentences]
        if name == "train":
            data.embedding = embedding_of(rows, len(vocabulary), dim)
        padded = np.zeros((len(rows), steps), np.int64)
        for padded_row, row in zip(padded, rows, strict=True):
            padded_row[steps - len(row[:steps]) :] = row[:steps]
        data[f"X_{name}"] = torch.as_tensor(padded)
        data[f"y_{name}"] = torch.as_tensor(labels, dtype=torch.int64)
    return data


def embedding_of(rows: Sequence[np.ndarray], size: int, dim: int) -> Tensor:
    """Compute the embedding of shape (size, dim): the truncated SVD of the PPMI of words at most `_WINDOW` apart."""
    counts = sparse.csr_array((size, size))
    for gap in range(1, _WINDOW + 1):
        pairs = np.concatenate([np.stack([row[:-gap], row[gap:]]) for row in rows], axis=1)
        counts += sparse.coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), (size, size)).tocsr()
    counts = (counts + counts.T).tocoo()
    totals = counts.sum(axis=1)
    ratio = counts.data * totals.sum() / (totals[counts.row] * totals[counts.col])
    ppmi = sparse.csr_array((np.log(np.maximum(ratio, 1)), (counts.row, counts.col)), (size, size))
    U, S, _ = randomized_svd(ppmi, dim, n_iter=7, random_state=0)
    table = U * np.sqrt(S)
    table *= np.sqrt(dim) / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    table[0] = 0
    return torch.as_tensor(table, dtype=torch.float32)
