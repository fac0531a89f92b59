"""How often a fit copies and traces networks.

A parent is deep-copied once, whatever asks for it, and the fused network is one more copy. Where widths change, they are checked
on one more of each architecture, doubled, which is the target itself if that is doubled. A FusionInput keeps a copy of each
architecture, which later fits share. Parametrizations are tried out on one of the first parent; networks in half precision, or
on another device, are copied once more an architecture, for the trace.

Each architecture is traced once by its discovery, and each network of other widths once. A correction runs the architectures and
the target on batches of another size, and traces each once more for that.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sklearn_wbfuse import FusionInput, WassersteinFusion, discover


def dense(*widths):
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cell, self.head = nn.GRU(3, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.cell(x)[1][0])


class Normalised(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.hidden, self.head = weight_norm(nn.Linear(3, width)), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


def convolutional(width):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 2))


DOUBLED = {"correction": None, "target_widths": 2.0, "merge": "all"}
CASES = {
    "equal widths": (lambda: [dense(3, 7, 2) for _ in range(3)], {"correction": None}, None, 4, 1),
    "equal widths, corrected": (lambda: [dense(3, 7, 2) for _ in range(3)], {"random_state": 0}, None, 4, 2),
    "recurrent, corrected": (lambda: [Recurrent(5), Recurrent(5)], {"random_state": 0}, None, 3, 2),
    "parametrized": (lambda: [Normalised(5), Normalised(5)], {"correction": None}, None, 4, 1),
    "parametrized, corrected": (lambda: [Normalised(5), Normalised(5)], {"random_state": 0}, None, 4, 2),
    "batch norm": (
        lambda: [convolutional(4), convolutional(4)],
        {"correction": None, "example_inputs": torch.randn(2, 1, 6, 6)},
        None,
        3,
        1,
    ),
    "into the wider": (lambda: [dense(3, 7, 2), dense(3, 9, 2)], {"correction": None}, None, 4, 4),
    "into a third width": (lambda: [dense(3, 7, 2), dense(3, 9, 2)], {"target_widths": {"0": 8}, "random_state": 0}, None, 5, 8),
    "doubled": (lambda: [dense(3, 7, 2) for _ in range(2)], DOUBLED, None, 3, 2),
    "doubled and recurrent": (lambda: [Recurrent(4), Recurrent(4)], DOUBLED, None, 3, 2),
    "half precision": (lambda: [dense(3, 7, 2).half() for _ in range(2)], {"correction": None}, None, 4, 1),
    "rows": (lambda: [dense(3, 7, 2) for _ in range(2)], {"random_state": 0}, torch.randn(40, 3), 4, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_copies_and_traces_of_a_fit(counts, name):
    make, options, rows, copies, traces = CASES[name]
    torch.manual_seed(0)
    models = make()
    fusion = WassersteinFusion(**options)
    fusion.fit(models if rows is None else FusionInput(models, rows))
    assert (counts.copies, len(counts.traced)) == (copies, traces)


def test_fits_that_share_rows_copy_the_result_alone(counts):
    shared = FusionInput([dense(3, 7, 2) for _ in range(2)], torch.randn(40, 3))
    for copies, traces in ((4, 1), (1, 0)):
        counts.copies, counts.traced = 0, []
        WassersteinFusion(correction=None).fit(shared)
        assert (counts.copies, len(counts.traced)) == (copies, traces)


class Counting(nn.Module):
    """Reads constants that its forward makes: positions, and a state."""

    def __init__(self):
        super().__init__()
        self.table, self.cell, self.head = nn.Embedding(4, 3), nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        x = x + self.table(torch.arange(x.shape[1]))
        return self.head(self.cell(x, torch.full((1, len(x), 5), 0.5))[1][0])


def test_constants_of_a_trace_need_no_second_pass(monkeypatch):
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", lambda *args: pytest.fail("the slow pass"))
    for network in (Counting(), Recurrent(4)):
        spec = discover(network, (torch.randn(2, 4, 3),))
        assert spec.sizes["cell.l0"] == network.cell.hidden_size
