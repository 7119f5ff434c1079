# Two commands suffice on a fresh machine with Python and make: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-slow clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: .venv/installed ## Make .venv and install the project with its tools

demo: .venv/installed ## Tokenise the clips shipped here, verify the tokens, read them back
	$(BIN)/python -m pipeline.demo

check: .venv/installed ## Lint, format, import contracts, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

test: check ## Everything that must pass: check, then the tests without the slow ones
	OMP_WAIT_POLICY=passive $(BIN)/pytest

test-slow: .venv/installed ## The tests that take long
	OMP_WAIT_POLICY=passive $(BIN)/pytest -m slow --timeout 900

clean: ## Remove .venv and caches; outputs/ and runs/ stay
	rm -rf .venv build dist .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find conf jobs pipeline tests tokenizer -name __pycache__ -type d -prune -exec rm -rf {} +

# torch by itself first: where a CPU build is at hand it satisfies the pin, else the same pin takes
# CUDA. The build backend comes with it, pinned, so that no build environment is made.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"make: Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; try: make PYTHON=python3.11 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch hatchling editables
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@
