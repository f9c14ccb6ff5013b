# Both commands set themselves up: Python 3.11+, pip and make are all they need.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Installed once for each state of these files.
READY  := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
S3     := $(VENV)/s3/bin/moto_server

.PHONY: demo test nightly check chaos audit docs setup

demo: $(READY)
	$(BIN)/daal demo --out runs/demo

test: $(READY) $(S3) check
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest

# What takes minutes each: several nodes, two runs on one cluster, peers' recipes.
nightly: $(READY)
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

$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(S3): tests/faults/s3_server.txt
	$(PYTHON) -m venv $(VENV)/s3
	$(VENV)/s3/bin/pip install --quiet --requirement $<
	touch $@
