"""What `make gpu` runs: the tests that take the fixture `device`, then `bench_device.py`, in the Python that is given.

    python benchmarks/speed/on_device.py cuda    on a GPU, under 8 minutes
    python benchmarks/speed/on_device.py cpu     a dry run of a few tests and two small fits

It installs nothing. What is missing is named in one line, and the exit status is then 2.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "POT": "ot",
    "joblib": "joblib",
    "safetensors": "safetensors",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
}
TESTS = "test_device.py barycenter correction fusion graph layers model_selection transport".split()
DRY = ["test_device.py", "-k", "mixed or saved or rows or parametrized"]
WHICH = "device and not slow and not data and not dask"
JOBS = 8
"""Processes where pytest-xdist is there: tests are bound by the host, and each process holds half a GiB of the device."""
TESTS_END = 300
"""Seconds after which the tests are stopped, so that the fits come within 8 minutes."""


def missing(device: str) -> str:
    """What this machine lacks, in one line."""
    packages = [name for name, module in NEEDED.items() if find_spec(module) is None]
    if packages:
        return f"make gpu needs packages that {sys.executable} does not have: {', '.join(packages)}"
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"make gpu needs a CUDA device, and PyTorch {torch.__version__} sees none; DEVICE=cpu is the dry run"
    return ""


def tests(device: str, environment: dict[str, str]) -> int:
    dry = device == "cpu"
    jobs = min(JOBS, (os.cpu_count() or 1) // 2)
    side = ["-n", str(jobs)] if not dry and jobs > 1 and find_spec("xdist") is not None else []
    files = DRY if dry else TESTS
    command = [sys.executable, "-m", "pytest", "-q", "-m", WHICH, "--durations=10", *side, *files]
    try:
        return subprocess.run(command, cwd=ROOT / "tests", env=environment, timeout=TESTS_END).returncode
    except subprocess.TimeoutExpired:
        print(f"The tests took more than {TESTS_END} s and were stopped.", flush=True)
        return 1


def main() -> int:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    lacking = missing(device)
    if lacking:
        print(lacking, flush=True)
        return 2
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WBFUSE_DEVICE": device, "MPLBACKEND": "Agg"}
    quick = {"HYPOTHESIS_PROFILE": "quick", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    failed = tests(device, {**environment, **quick})
    bench = [sys.executable, str(ROOT / "benchmarks" / "speed" / "bench_device.py"), device]
    return subprocess.run(bench, cwd=ROOT, env=environment).returncode or failed


if __name__ == "__main__":
    sys.exit(main())
