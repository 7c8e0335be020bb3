# Needs Python >= 3.11, gcc and make, nothing else: the environment is made here, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.tokvid-installed
ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env demo test soak check format bench clean

help:
	@echo "make demo    train a small video language model from nothing and report what it draws"
	@echo "make test    run the test suite (ARGS='-m \"not slow\"' for the unit tests alone)"
	@echo "make soak    kill trainings at random steps, twenty times each, and compare what they end with"
	@echo "make check   formatting, lint, types and import rules"
	@echo "make format  put the sources into their format"
	@echo "make bench   measure speed, print a table"
	@echo "make env     make the environment that all of these use"
	@echo "make clean   remove the environment and what was built; runs/ stays"

env: $(STAMP)

# The stamp is written last: an installation that was interrupted starts again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: tokvid needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment: install its venv module (Debian: python3-venv)"; exit 1; }
	@echo "installing tokvid and what it needs into $(VENV) (about 3 minutes the first time)"
	@$(BIN)/python -m pip install --quiet --no-input --editable '.[dev]'
	@touch $(STAMP)

demo: env
	$(BIN)/tokvid demo $(ARGS)

test: env
	$(BIN)/python -m pytest -q $(ARGS)

soak: env
	TOKVID_SOAK_KILLS=20 $(BIN)/python -m pytest -q tests/integration/test_soak.py $(ARGS)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env
	$(BIN)/python -m pytest -q -s -o python_files='bench_*.py' tests/benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
