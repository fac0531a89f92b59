"""Data-free fusion of recurrent networks on the test splits of SST-2 and AG News.

    WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_text.py [--quick]

WBFUSE_DATA is needed for SST-2 (see `load_sst2`). Base models are trained (see base_models.py), half a minute each on one thread.
Printed as in bench_mnist_rnn.py; "paper" is the gap of the fusion to its parents in arXiv:2210.06671, whose networks read GloVe
vectors. Here they read an embedding built from the few training rows, so the parents are weaker. With --quick one pair.
"""

import argparse

import torch
from base_models import ag_news, sst2
from comparison import compare
from torch import nn

from sklearn_wbfuse.discovery import discover_all

PAIRS = [(0, 1), (2, 3), (4, 5)]
METHODS: dict[str, dict] = {"alpha_h 0": {"alpha_h": 0.0}, "defaults": {}}
PUBLISHED = {"sst2-rnn-256": -4.7, "sst2-lstm-256": -6.3, "agnews-rnn-256": -27.7, "agnews-lstm-256": -4.4}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuse recurrent networks trained on text.")
    parser.add_argument("--quick", action="store_true", help="one pair")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    discover_all([nn.Linear(2, 2)])  # the first export of a process is slow
    for name, gap in PUBLISHED.items():
        data = sst2() if name.startswith("sst2") else ag_news()
        compare(name, PAIRS[:1] if arguments.quick else PAIRS, data, METHODS, published=gap)


if __name__ == "__main__":
    main()
