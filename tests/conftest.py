import copy
import gc
import os
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, max_examples=8, suppress_health_check=list(HealthCheck), derandomize=True)
settings.register_profile("quick", parent=settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
settings.register_profile("thorough", deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


DEVICE = os.environ.get("WBFUSE_DEVICE", "cpu")


@pytest.fixture(scope="session")
def device():
    """Where models and inputs live: the environment variable WBFUSE_DEVICE, the CPU by default."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(DEVICE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process runs all tests of a file, and the files that share discovered networks: what they cache is computed once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "adapters" if file.startswith("tests/layers/") or file == "tests/test_extending.py" else file

    return ByFile(config, log)


def pytest_collection_finish():
    """Collect garbage more rarely: what is imported by now stays, and looking through it again took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture
def counts(monkeypatch):
    """Count deep copies of networks, but for those within a copy, in `copies`; `traced` has the number of rows of each trace."""
    result, depth = SimpleNamespace(copies=0, traced=[]), [0]
    deepcopy, export = copy.deepcopy, torch.export.export

    def counted(x, memo=None, **options):
        result.copies += isinstance(x, torch.nn.Module) and not depth[0]
        depth[0] += 1
        try:
            return deepcopy(x, memo, **options)
        finally:
            depth[0] -= 1

    def traced(model, inputs, **options):
        result.traced.append(len(inputs[0]))
        return export(model, inputs, **options)

    monkeypatch.setattr(copy, "deepcopy", counted)
    monkeypatch.setattr(torch.export, "export", traced)
    return result


def pytest_collection_modifyitems(items):
    """Mark whatever asks for `device`, so that ``-m device`` selects it (``make gpu``)."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("device")
