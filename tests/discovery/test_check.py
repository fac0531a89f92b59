"""Inputs of the self-check, where random ones do not do."""

import torch
from torch import nn

from sklearn_wbfuse import FusionInput, WassersteinFusion


class Counted(nn.Module):
    """Reads a table at places that the number of true values moves."""

    def __init__(self, width):
        super().__init__()
        self.table, self.head = nn.Embedding(7, width), nn.Linear(width, 3)

    def forward(self, tokens, mask):
        places = tokens + mask.long().sum(1, keepdim=True)
        return self.head(torch.relu(self.table(places).mean(1)))


def test_whole_numbers_and_masks_that_do_not_fit_together_are_those_of_the_examples():
    tokens, mask = torch.arange(6).reshape(2, 3), torch.arange(16) == torch.zeros(2, 1)  # one true value a row
    fusion = WassersteinFusion(correction=None).fit(FusionInput([Counted(4), Counted(5)], (tokens, mask)))
    assert list(fusion.graph_.sizes.values()) == [5]
    assert fusion.fused_model_(tokens, mask).shape == (2, 3)
