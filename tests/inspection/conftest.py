import pytest


@pytest.fixture(autouse=True)
def _close_figures():
    pytest.importorskip("matplotlib").use("Agg", force=True)
    yield
    from matplotlib import pyplot

    pyplot.close("all")
