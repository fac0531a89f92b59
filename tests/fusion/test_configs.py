"""Networks that are built from a configuration: it follows the widths of the fused network, whatever its fields are called."""

import copy
import warnings

import pytest
import torch
from torch import nn

from sklearn_wbfuse import WassersteinFusion, load


class Config:
    """What the library asks of a configuration."""

    def __init__(self, **fields):
        vars(self).update(fields)

    def to_dict(self):
        return dict(vars(self))


class Net(nn.Module):
    """Two hidden layers of blocks: their number is in no shape, the width of the second may be left out."""

    def __init__(self, config):
        super().__init__()
        if config.nested.width % config.parts:
            raise ValueError("parts must divide the width")
        self.config = config
        self.first = nn.Linear(3, config.nested.width)
        self.second = nn.Linear(config.nested.width, config.inner or 2 * config.nested.width)
        self.third = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip([self.second.out_features, *config.widths], [*config.widths, 2], strict=True)
        )
        self.norm = nn.GroupNorm(config.parts, config.nested.width)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        for layer in self.third:
            x = layer(torch.relu(x))
        return x

    def save_pretrained(self, folder):
        raise NotImplementedError


class Outer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.body, self.last = Net(config), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.body(x))


def config(**changes):
    fields = {
        "nested": Config(width=6),
        "inner": None,
        "widths": [5, 4],
        "parts": 3,
        "layers": 7,
        "pad_token_id": 3,
        "name": None,
    }
    return Config(**fields | changes)


def said_and_fused(models, widths):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fusion = WassersteinFusion(widths, random_state=0, correction=None).fit([m.eval() for m in models])
    return [str(w.message) for w in caught if "configuration" in str(w.message)], fusion


def flat(config):
    return {**config.to_dict(), "nested": config.nested.width}


@pytest.mark.parametrize(
    ("widths", "fields"),
    [
        ({"third.0": 8}, {"widths": [8, 4]}),
        ({"second": 9}, {"inner": 9}),
        ({"first": 12}, {"nested": 12, "inner": 12}),
        (2.0, {"nested": 12, "widths": [10, 8], "parts": 6}),
    ],
)
def test_fields_are_found_by_what_they_do(widths, fields):
    torch.manual_seed(0)
    model = Net(config())
    messages, fusion = said_and_fused([model], widths)
    assert not messages
    fused_config = fusion.fused_model_.config
    assert flat(fused_config) == flat(config()) | fields
    assert flat(model.config) == flat(config())
    twin, x = Net(fused_config).eval(), torch.randn(4, 3)
    twin.load_state_dict(fusion.fused_model_.state_dict())
    torch.testing.assert_close(twin(x), fusion.fused_model_(x), rtol=0, atol=0)


def test_parts_of_a_network_and_saves(tmp_path):
    models = [Outer(config(widths=[5, width])) for width in (4, 6)]
    messages, fusion = said_and_fused(models, None)
    assert not messages
    assert fusion.fused_model_.body.config.widths == [5, 6]
    fusion.save(tmp_path / "fused")
    assert load(tmp_path / "fused", model=Outer(config())).fused_model_.body.config.widths == [5, 6]


def test_widths_that_no_field_says_are_a_warning():
    class Fixed(Net):
        def __init__(self, config):
            super().__init__(copy.copy(config))
            self.extra = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))

        def forward(self, x):
            return self.extra(super().forward(x))

    models = [Fixed(config())]
    messages, fusion = said_and_fused(models, {"extra.0": 6})
    assert len(messages) == 1
    assert "The fused Fixed has other widths than its configuration" in messages[0]
    assert flat(fusion.fused_model_.config) == flat(config())
