# The front door: `make help` lists what there is. Every target makes its own environment in .venv
# and installs again only when the locked versions or pyproject.toml changed.

VENV ?= .venv
BIN := $(VENV)/bin
# The first of these that is 3.11 or later and can make an environment. That a command of the name
# exists is not enough: version managers leave stand-ins that fail when called.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& command -v $$p && break; done)
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format check docs bench soak lock clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	|| sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1: \2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## start the demo and print its address (ARGS="--port 8001")
	@$(BIN)/sojourn demo $(ARGS)

test: $(VENV)/.dev ## run all tests (ARGS="-k cookie")
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev docs ## ruff, format, types, import direction, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	$(BIN)/python -m pytest -q tests/test_imports.py

check: lint test ## everything a change must pass: lint and test

format: $(VENV)/.dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## build the documentation, warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.dev ## measure, side by side with others
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.dev ## run under load for a long time
	$(BIN)/python -m benchmarks.soak $(ARGS)

lock: ## choose versions anew (ARGS=--upgrade for newer ones)
	PYTHON="$(PYTHON)" requirements/lock $(ARGS)

clean: ## remove environments, caches and built files
	rm -rf $(VENV) .nox .mypy_cache .pytest_cache .ruff_cache .hypothesis htmlcov build dist docs/_build
	rm -f .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that was made but not filled (no network, say) has no stamp and is filled next time.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Sojourn needs Python 3.11 or later with its venv module (Debian: apt install python3-venv);" \
		"none of python3.13, python3.12, python3.11, python3, python is one. Name yours: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.demo: requirements/demo.txt pyproject.toml | $(BIN)/python
	@echo "Installing requirements/demo.txt into $(VENV)"
	@$(PIP_INSTALL) --require-hashes -r requirements/demo.txt
	@$(PIP_INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing requirements/dev.txt into $(VENV)"
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@$(PIP_INSTALL) --no-build-isolation --no-deps -e .
	@touch $@ $(VENV)/.demo
