# make demo   installs fanin into $(VENV) and runs its experiment
# make test   installs the development tools too and runs every check: lint, types and tests
# make docs   builds the guide into docs/_build/html; a warning is an error
# make clean  removes what the others made
# VENV (default .venv) and PYTHON (default python3, at least 3.11) may be given on the command line.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := hatch_build.py $(wildcard src/fanin/draw/compiled/*.[ch])  # compiled at installation

# The networks here are small: one thread per process is fastest, above all with parallel tests.
export OMP_NUM_THREADS ?= 1

# To compile all that is installed takes most of an installation: what is imported is compiled then,
# and kept, for every process of the tests imports torch.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --no-compile -c constraints.txt

.PHONY: demo test lint types tests docs clean

demo: $(VENV)/.installed
	$(BIN)/fanin demo

test: lint types tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

tests: $(VENV)/.installed-dev
	$(BIN)/pytest

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fanin needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt $(SOURCES) | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(SOURCES) | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf docs/_build docs/made docs/findings docs/schemes src/fanin/draw/compiled/draw.so
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
