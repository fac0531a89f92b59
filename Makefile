# Everything here needs only Python (3.11 or newer) and make.
#
#   make test PYTHON=python3.11      use another interpreter for the environment
#   make test PIP_EXTRA="--extra-index-url https://download.pytorch.org/whl/cpu"
#                                    install the CPU build of PyTorch: on Linux
#                                    the default build brings gigabytes of CUDA
#   make test PYTEST_ARGS="-k fuse"  hand arguments to pytest

PYTHON      ?= python3
PIP_EXTRA   ?=
PYTEST_ARGS ?=
SPHINXOPTS  ?=
DEVICE      ?= cuda
BENCH       ?= $(sort $(filter-out %/bench_device.py,$(wildcard benchmarks/bench_*.py benchmarks/speed/bench_*.py)))

VENV := .venv
BIN  := $(VENV)/bin

# One thread per process: the tests run in two processes, and results then do
# not depend on how many cores the machine has.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
INSTALL    := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(PIP_EXTRA)

# An environment is installed once; it is installed again when the requirements
# or the pins change.
BASE := $(VENV)/.installed-base
LINT := $(VENV)/.installed-lint
DOC  := $(VENV)/.installed-doc

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint check bench gpu doc clean

help: ## list these targets
	@echo "Usage: make TARGET [PYTHON=python3] [PIP_EXTRA=\"...\"]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "On Linux, PIP_EXTRA=\"--extra-index-url https://download.pytorch.org/whl/cpu\""
	@echo "installs the CPU build of PyTorch and spares a download of several gigabytes."

setup: $(BASE) ## make the environment .venv (the other targets do this by themselves)

demo: $(BASE) ## fuse two small networks and show what comes out
	@$(BIN)/wbfuse demo

test: $(BASE) ## run the tests and the doctests
	$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(LINT) ## check style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: test lint ## test and lint

bench: $(BASE) ## run the benchmarks, or one of them: BENCH=benchmarks/bench_x.py
	@test -n "$(BENCH)" || echo "No benchmarks/bench_*.py or benchmarks/speed/bench_*.py to run."
	@set -e; for b in $(BENCH); do echo "== $$b"; $(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python "$$b"; done

gpu: ## run the tests and two fits on a CUDA device, with PYTHON as it is; DEVICE=cpu is a dry run
	@$(PYTHON) benchmarks/speed/on_device.py $(DEVICE)

doc: $(DOC) ## build the documentation in doc/_build/html
	MPLBACKEND=Agg $(BIN)/python -m sphinx -b html $(SPHINXOPTS) doc doc/_build/html

clean: ## remove what was built; .venv stays (rm -rf .venv to start afresh)
	rm -rf build dist *.egg-info doc/_build doc/auto_examples doc/generated doc/sg_execution_times.rst
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	@echo "Setting up $(VENV) (once, about a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e '.[test,plot]'
	@touch $@

$(LINT): $(BASE)
	@echo "Adding the linters to $(VENV) (once) ..."
	@$(INSTALL) -e '.[test,plot,dev]'
	@touch $@

$(DOC): $(BASE)
	@echo "Adding Sphinx to $(VENV) (once) ..."
	@$(INSTALL) -e '.[test,plot,doc]'
	@touch $@
