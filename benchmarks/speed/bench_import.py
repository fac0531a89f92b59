"""CPU time of imports, as ratios to that of PyTorch alone in the same run. Run: python benchmarks/speed/bench_import.py

Each is the least user time of some fresh interpreters, in turns. ``--cold`` compiles every module anew, as a first import does.
With ``--before FOLDER``, a checkout of another version, its estimator is imported too.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]
ESTIMATOR = "import torch; from sklearn_wbfuse import WassersteinFusion"
VERSION = "from sklearn_wbfuse.cli import main; main(['--version'])"


def seconds(code, folder, cold):
    """User time of an interpreter that runs some code; the package is that of a folder."""
    options = ["-B", "-X", f"pycache_prefix={os.devnull}/none"] if cold else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *options, "-c", code]  # Python looks for packages in the current folder first
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--before", type=Path)
    arguments = parser.parse_args()
    cases = {
        "PyTorch": ("import torch", HERE),
        "PyTorch and scikit-learn's base": ("import torch, sklearn.base", HERE),
        "PyTorch and an estimator": (ESTIMATOR, HERE),
        "sklearn_wbfuse, nothing named": ("import sklearn_wbfuse", HERE),
        "wbfuse --version": (VERSION, HERE),
    }
    if arguments.before is not None:
        cases["PyTorch and an estimator, before"] = (ESTIMATOR, arguments.before)
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(arguments.runs):
        for name, (code, folder) in cases.items():
            least[name] = min(least[name], seconds(code, folder, arguments.cold))
    for name, value in least.items():
        print(f"{name:35s} {value / least['PyTorch']:.2f} of PyTorch's {least['PyTorch']:.2f} s")


if __name__ == "__main__":
    main()
