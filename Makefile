# Everything runs in .venv, which the first target that needs it makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The networks here are small: more threads wait for each other more than they compute.
export OMP_NUM_THREADS ?= 2

.PHONY: help install quickstart test test-all lint typecheck format docs linkcheck pictures clean

help:
	@echo 'make quickstart  train with and without freezing on handwritten digits, and compare (about 4 minutes)'
	@echo 'make test        the tests'
	@echo 'make test-all    the tests, slow ones included'
	@echo 'make lint        style; make format mends it'
	@echo 'make typecheck   types'
	@echo 'make docs        the documentation, as docs/_build/html/index.html'
	@echo 'make pictures    its pictures, drawn anew from the code and the records'

install: $(INSTALLED)

$(INSTALLED): setup.py setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/composer-freezeout compare quickstart --overwrite --arms baseline,baseline_short,layer_freezing,freezeout

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

# Warnings are errors, and so are references that lead nowhere. -E: pages include files that Sphinx does not watch.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -n -W --keep-going -q -E docs docs/_build/html

# Needs the internet.
linkcheck: $(INSTALLED)
	$(BIN)/python -m sphinx -b linkcheck -q docs docs/_build/linkcheck

pictures: $(INSTALLED)
	$(BIN)/python docs/pictures.py

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .ruff_cache
