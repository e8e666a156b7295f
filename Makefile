# Everything runs in .venv, which the first target that needs it makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The networks here are small: more threads wait for each other more than they compute.
export OMP_NUM_THREADS ?= 2

.PHONY: help install quickstart test test-all lint typecheck format clean

help:
	@echo 'make quickstart  train with and without freezing on handwritten digits, and compare (about 4 minutes)'
	@echo 'make test        the tests'
	@echo 'make test-all    the tests, slow ones included'
	@echo 'make lint        style; make format mends it'
	@echo 'make typecheck   types'

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/python benchmarks/compare.py yamls/quickstart --out runs/quickstart --overwrite \
		--arms baseline,baseline_short,layer_freezing,freezeout

# Two processes with a thread each: one module goes to one process.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not gpu'

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

typecheck: $(INSTALLED)
	$(BIN)/python -m pyright

format: $(INSTALLED)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
