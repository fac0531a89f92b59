"""Example inputs: mappings of keyword arguments, guesses, and what errors show of them."""

from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_wbfuse import FusionClassifier, WassersteinFusion, discover, load
from sklearn_wbfuse.discovery.inputs import as_inputs, shapes_of
from sklearn_wbfuse.exceptions import DiscoveryError


class Reader(nn.Module):
    """Takes tokens, and a mask behind an argument that few give."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, input_ids, positions=None, attention_mask=None, **unused):
        z = self.words(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.head((self.hidden(z).relu() * mask.unsqueeze(-1)).mean(1))


TOKENS, MASK = [[1, 2, 3], [4, 5, 0]], [[1, 1, 1], [1, 1, 0]]
MAPPINGS = {
    "dict": {"input_ids": torch.tensor(TOKENS), "attention_mask": torch.tensor(MASK)},
    "other order": {"attention_mask": torch.tensor(MASK), "input_ids": torch.tensor(TOKENS)},
    "UserDict": UserDict(input_ids=torch.tensor(TOKENS), attention_mask=torch.tensor(MASK)),
    "arrays": {"input_ids": np.array(TOKENS), "attention_mask": np.array(MASK)},
    "lists of numbers": UserDict(input_ids=TOKENS, attention_mask=MASK),
}


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_keyword_arguments_take_their_places(mapping, tmp_path):
    torch.manual_seed(0)
    model, mapping_given = Reader().eval(), MAPPINGS[mapping]
    ids, gap, mask = as_inputs(mapping_given, model)
    assert gap is None and ids.tolist() == TOKENS and mask.tolist() == MASK
    assert len(as_inputs({"input_ids": ids}, model)) == 1
    classifier = FusionClassifier(WassersteinFusion(example_inputs=mapping_given, correction="regression", random_state=0))
    fused = classifier.fit([model]).fused_model_
    torch.testing.assert_close(fused(ids, attention_mask=mask), model(ids, attention_mask=mask), atol=1e-4, rtol=1e-4)
    classifier.save(tmp_path / "saved")
    again = load(tmp_path / "saved", model=model)
    assert torch.equal(again.fused_model_(ids, None, mask), fused(ids, None, mask))
    if isinstance(mapping_given, dict):  # a whole mapping is one argument in a tuple
        with pytest.raises(DiscoveryError, match=r"shapes \(\{.*\(2, 3\)"):
            discover(model, (mapping_given,))


def test_the_tokens_of_a_tokenizer():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": TOKENS, "attention_mask": MASK}, tensor_type="pt")
    model = Reader().eval()
    fused = WassersteinFusion(example_inputs=encoding, correction=None).fit([model, model]).fused_model_
    torch.testing.assert_close(fused(**encoding), model(**encoding), atol=1e-5, rtol=1e-5)


def test_shapes_hold_no_values():
    inputs = (torch.ones(2, 3), {"a": [np.ones(2, dtype=int)], "b": UserDict(c=torch.ones(1).bool())}, None, 3, "text")
    assert shapes_of(inputs) == "((2, 3), {'a': [(2,) int64], 'b': {'c': (1,) bool}}, None, 3, str)"


FIRST = {
    "(torch.randn(2, 5, H, W),)": lambda: nn.Sequential(nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(16, 2)),
    "(torch.randn(2, 3, D, H, W),)": lambda: nn.ConvTranspose3d(3, 2, 1),
    "(torch.randn(2, 6, H, W),)": lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)),
    "(torch.randn(2, ..., 7),)": lambda: nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 2)),
}


@pytest.mark.parametrize("call", FIRST)
def test_inputs_that_can_not_be_guessed_have_the_channels_of_the_first_layer(call):
    with pytest.raises(DiscoveryError) as caught:
        discover(FIRST[call]())
    assert f"WassersteinFusion(example_inputs={call})" in str(caught.value)


def test_a_guess_is_called_one_whatever_fails():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 0 else -x)

    for model in (Branching(4, 2), nn.Sequential(nn.Linear(4, 2), nn.Conv1d(3, 2, 1))):
        with pytest.raises(DiscoveryError, match=r"inputs of shapes \(\(2, 4\),\), a guess from the first layer"):
            discover(model)
        with pytest.raises(DiscoveryError) as caught:
            discover(model, torch.randn(2, 4))
        assert "guess" not in str(caught.value)
