.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headwater needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

venv: $(STAMP) ## Make .venv with the pinned, hash-locked dependencies

demo: $(STAMP) ## Play examples/support_desk on embedded servers and a provider simulator
	$(BIN)/python -m examples.support_desk.demo

test: $(STAMP) ## Run the whole test suite, on real servers that it starts itself
	$(BIN)/pytest

lint: $(STAMP) ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Measure throughput and latency beside a bare loop; JSON and a table
	$(BIN)/python -m bench

docs: $(STAMP) ## Make the generated pages of docs/ again
	$(BIN)/python -m headwater.docs

lock: ## Resolve the dependencies again (needs uv)
	requirements/lock.sh

clean: ## Remove what the targets above made
	rm -rf $(VENV) .headwater .headwater-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help venv demo test lint format bench docs lock clean
