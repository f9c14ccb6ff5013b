# Both commands set themselves up: Python 3.11+, pip and make are all they need.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Installed once for each state of these files.
READY  := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
BEGUN  := $(VENV)/.installing
S3     := $(VENV)/s3/.installed
# Debian's Python has venv in a package of its own; without it, half an environment is made.
USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
NEEDED := Python 3.11 or newer with venv is needed (Debian, Ubuntu: apt install python3-venv). Name \
          one by make PYTHON=python3.12, and a new folder for its environment by VENV=FOLDER.

.PHONY: demo test test-ray test-rest nightly check chaos audit docs setup

demo: $(READY)
	$(BIN)/daal demo --out runs/demo

# Side by side: tests that start Ray mostly wait for processes to start, the others compute.
test: $(READY) $(S3) check
	$(MAKE) --no-print-directory --jobs=2 test-ray test-rest

test-ray: $(READY) $(S3)
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest -m 'ray and not nightly'

test-rest: $(READY) $(S3)
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest -m 'not ray and not nightly'

# What takes minutes each: several nodes, two runs on one cluster, peers' recipes.
nightly: $(READY) $(S3)
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest -m nightly

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy daal cluster pipelines benchmarks
	$(BIN)/lint-imports

# Fifty kills at random over one adaptation.
chaos: $(READY)
	$(BIN)/python -m benchmarks.chaos

# Known vulnerabilities of the pinned packages; asks PyPI. A package it can't look up is an error.
audit: $(READY)
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

# The documentation as a site, docs/_build/index.html; a warning is an error. Needs no network.
docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going --quiet docs docs/_build

setup: $(READY) $(S3)

# An installation that was interrupted may have left half a package, which pip takes for a whole
# one: then all are installed again. What lies in the folder besides them stays.
$(READY):
	@for python in $(PYTHON) $(wildcard $(BIN)/python); do \
	  $$python -c '$(USABLE)' 2>/dev/null || \
	  { echo "error: $$python can't be used ($$($$python --version 2>&1)): $(NEEDED)" >&2; exit 1; }; \
	done
	$(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed-*
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]' \
	  $$(test -e $(BEGUN) && echo --ignore-installed; touch $(BEGUN))
	@mv $(BEGUN) $@

$(S3): tests/faults/s3_server.txt | $(READY)
	$(PYTHON) -m venv --clear $(VENV)/s3
	$(VENV)/s3/bin/pip install --quiet --requirement $<
	@touch $@
