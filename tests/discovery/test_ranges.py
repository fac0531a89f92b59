"""Which networks return probabilities: seen from what their operations do to values, whatever follows a softmax."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_wbfuse.discovery.export import export
from sklearn_wbfuse.discovery.ranges import returns_probabilities


class Ending(nn.Module):
    """A small network, then what is done to its logits."""

    def __init__(self, last):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 3), last
        self.shares = nn.Parameter(torch.zeros(2))
        self.register_buffer("halves", torch.full((2,), 0.5))

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(self.second(hidden), self, hidden)


def gates(z, net, hidden):
    """A mixture of experts: probabilities weighed by a softmax."""
    experts = torch.stack([z.softmax(1), (2 * z).softmax(1)], 1)
    return (hidden[:, :2].softmax(1).unsqueeze(-1) * experts).sum(1)


def written_in_place(z, net, hidden):
    both = torch.zeros(len(z), 2, dtype=z.dtype)
    p = z[:, 0].sigmoid()
    both[:, 0] = 1 - p
    both[:, 1] = p
    return both


PROBABILITIES = {
    "softmax": lambda z, net, h: z.softmax(1),
    "sigmoid": lambda z, net, h: z.sigmoid(),
    "cast": lambda z, net, h: F.softmax(z, 1, dtype=torch.float64).float(),
    "detached": lambda z, net, h: z.softmax(1).detach().clone(),
    "dropout": lambda z, net, h: F.dropout(z.softmax(1), 0.5, net.training),
    "clamped": lambda z, net, h: z.softmax(1).clamp(1e-6, 1 - 1e-6),
    "clamped in place": lambda z, net, h: z.sigmoid().clamp_(min=1e-6),
    "concatenated": lambda z, net, h: torch.cat([1 - z[:, :1].sigmoid(), z[:, :1].sigmoid()], 1),
    "stacked": lambda z, net, h: torch.stack([1 - z[:, 0].sigmoid(), z[:, 0].sigmoid()], -1),
    "written in place": written_in_place,
    "shapes": lambda z, net, h: z.softmax(1).flatten(1).reshape(-1, 3)[:, [2, 0, 1]].unsqueeze(1).squeeze(1),
    "exp of log-probabilities": lambda z, net, h: torch.log_softmax(z, 1).exp(),
    "exp of less logsumexp": lambda z, net, h: (z - z.logsumexp(1, keepdim=True)).exp(),
    "softmax written out": lambda z, net, h: (z - 1).exp() / (z - 1).exp().sum(1, keepdim=True),
    "sigmoid written out": lambda z, net, h: 1 / (1 + torch.exp(-z)),
    "sigmoid of tanh": lambda z, net, h: (torch.tanh(z) + 1) / 2,
    "expit": lambda z, net, h: torch.special.expit(z),
    "hard sigmoid": lambda z, net, h: F.hardsigmoid(z),
    "probit": lambda z, net, h: torch.special.ndtr(z),
    "softmin": lambda z, net, h: F.softmin(z, 1),
    "divided by its sum": lambda z, net, h: (e := F.softplus(z)) / e.sum(1, keepdim=True).clamp_min(1e-9),
    "normalised": lambda z, net, h: F.normalize(z.softmax(1).square(), p=1, dim=1),
    "smoothed": lambda z, net, h: z.softmax(1) * 0.9 + 0.1 / 3,
    "plus epsilon": lambda z, net, h: z.softmax(1) + 1e-7,
    "mean of two": lambda z, net, h: (z.softmax(1) + h[:, :3].softmax(1)) / 2,
    "mean of many": lambda z, net, h: torch.stack([z.softmax(1), h[:, :3].softmax(1), h[:, 3:].softmax(1)]).mean(0),
    "weighed by a buffer": lambda z, net, h: net.halves[0] * z.softmax(1) + net.halves[1] * h[:, :3].softmax(1),
    "weighed by a softmax": gates,
    "weighed by a product": lambda z, net, h: torch.einsum(
        "e,eb...->b...", net.shares.softmax(0), torch.stack([z, -z]).sigmoid()
    ),
    "pooled": lambda z, net, h: F.adaptive_avg_pool1d(h.unsqueeze(1).sigmoid(), 2).amax(1),
    "the largest": lambda z, net, h: z.softmax(1).max(1).values,
    "masked": lambda z, net, h: torch.where(z > 0, z.softmax(1), 0.0).masked_fill(z > 9, 1.0),
    "two outputs": lambda z, net, h: (z.softmax(1), z.sigmoid()),
    "copied": lambda z, net, h: torch.full_like(z, 2.0).copy_(z.softmax(1)),
    "put between": lambda z, net, h: F.interpolate(
        F.pad(z.softmax(1)[:, None], (1, 1), mode="replicate"), 9, mode="nearest-exact"
    ),
    "the largest but one": lambda z, net, h: z.softmax(1).kthvalue(2, 1).values,
    "windows": lambda z, net, h: z.sigmoid().unfold(1, 2, 1).repeat_interleave(2, 0),
}
OTHERS = {
    "logits": lambda z, net, h: z,
    "log-probabilities": lambda z, net, h: z.log_softmax(1),
    "the logarithm of a softmax": lambda z, net, h: (z.softmax(1) + 1e-9).log(),
    "log-sigmoid": lambda z, net, h: F.logsigmoid(z),
    "logit of a sigmoid": lambda z, net, h: torch.logit(z.sigmoid(), 1e-6),
    "tanh": lambda z, net, h: z.tanh(),
    "tanh of a sigmoid": lambda z, net, h: z.sigmoid().tanh(),
    "relu": lambda z, net, h: z.relu(),
    "softplus": lambda z, net, h: F.softplus(z),
    "exp": lambda z, net, h: z.exp(),
    "a layer behind a softmax": lambda z, net, h: net.second(h.softmax(1)),
    "a gate": lambda z, net, h: z * z.sigmoid(),
    "attention": lambda z, net, h: torch.bmm(z.unsqueeze(1).softmax(2).transpose(1, 2), h.unsqueeze(1)).sum(1),
    "a temperature behind a softmax": lambda z, net, h: 10 * z.softmax(1),
    "a centred softmax": lambda z, net, h: z.softmax(1) - 1 / 3,
    "a sum of sigmoids": lambda z, net, h: h.sigmoid().sum(1),
    "beside logits": lambda z, net, h: torch.cat([z.softmax(1), z], 1),
    "an output of logits": lambda z, net, h: (z.softmax(1), z),
    "divided by another sum": lambda z, net, h: z.exp() / (z - 1).exp().sum(1, keepdim=True),
    "divided by its norm": lambda z, net, h: z / z.sum(1, keepdim=True),
    "positions of the largest": lambda z, net, h: z.softmax(1).max(1).indices.to(z.dtype),
    "a parameter's share": lambda z, net, h: z.softmax(1) * net.shares[0],
    "copied logits": lambda z, net, h: torch.zeros_like(z).copy_(z),
    "positions of the largest but one": lambda z, net, h: z.softmax(1).kthvalue(2, 1).indices.to(z.dtype),
    "positions of what is pooled": lambda z, net, h: F.max_pool1d(z.sigmoid(), 2, return_indices=True)[1].to(z.dtype),
    "a dropout that is always on": lambda z, net, h: F.dropout(z.softmax(1), 0.5, True),
    "standardised": lambda z, net, h: F.layer_norm(z.softmax(1), (3,)),
}


@pytest.mark.parametrize("ending", [*PROBABILITIES, *OTHERS])
def test_networks_that_end_in_probabilities(ending):
    network = Ending((PROBABILITIES | OTHERS)[ending]).eval()
    assert returns_probabilities(export(network, (torch.randn(2, 4),))) == (ending in PROBABILITIES)
