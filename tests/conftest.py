import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, max_examples=8, suppress_health_check=list(HealthCheck), derandomize=True)
settings.register_profile("quick", parent=settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
settings.register_profile("thorough", deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(scope="session")
def device():
    """Where the properties run: on a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
