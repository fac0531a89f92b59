"""Fits with `verbose` leave the package's logger as it was."""

import logging
import threading

import pytest
import torch
from torch import nn

from sklearn_wbfuse import FusionClassifier, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.exceptions import FusionError
from sklearn_wbfuse.fusion.progress import logs_progress

log = logging.getLogger("sklearn_wbfuse")


def state():
    return log.level, list(log.handlers)


@pytest.fixture(autouse=True)
def unheard(monkeypatch):
    """Nobody listens, as in a script; pytest does."""
    monkeypatch.setattr(log, "hasHandlers", lambda: False)


@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG, logging.ERROR])
@pytest.mark.parametrize(
    "make", [WassersteinFusion, VanillaAveraging, lambda **options: FusionClassifier(WassersteinFusion(**options))]
)
def test_the_logger_is_as_before(make, level, capsys, monkeypatch):
    monkeypatch.setattr(log, "level", log.level)  # to be put back
    log.setLevel(level)
    before = state()
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    make(verbose=1).fit([model, model])
    assert "fusing 2 models" in capsys.readouterr().err and state() == before
    make().fit([model, model])
    assert capsys.readouterr().err == ""
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(FusionError):
        make(verbose=1).fit([model])
    assert state() == before


def test_fits_side_by_side():
    class Fit:
        def __init__(self, verbose, inside):
            self.verbose, self.inside = verbose, inside

        @logs_progress
        def fit(self):
            self.inside()

    before, gate, entered = state(), threading.Event(), threading.Event()
    other = threading.Thread(target=Fit(1, lambda: entered.set() or gate.wait(9)).fit)

    def meet():
        other.start()
        assert entered.wait(9) and log.isEnabledFor(logging.INFO)

    Fit(1, meet).fit()
    assert log.isEnabledFor(logging.INFO)  # the other one still tells
    gate.set()
    other.join()
    assert state() == before
