# `make help` lists what can be made. Everything that needs Python installs it into .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --dist worksteal
# More workers than cores: tests that wait for other processes leave the cores to the others.
WORKERS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint type format bench soak wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## install mlotel, its examples and the tools into .venv

# torch goes first and alone: its exact version decides between the CPU build and gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[examples,dev]'
	@touch $(STAMP)

demo: $(STAMP) ## evaluate three models on traffic video: the example in examples/lpr
	$(BIN)/mlotel eval --config-dir examples/lpr/conf $(ARGS)

test: $(STAMP) ## run all tests; ARGS="-k name" picks some, WORKERS=1 runs one at a time
	$(PYTEST) -n $(or $(WORKERS),5) $(ARGS)

test-fast: $(STAMP) ## run the tests that take a minute together; ARGS as above
	$(PYTEST) -n $(or $(WORKERS),3) -m "not slow and not system" $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP) ## check types
	$(BIN)/pyright

format: $(STAMP) ## rewrite files in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## print what telemetry costs, as ratios of one run
	$(BIN)/python -m tests.bench $(ARGS)

soak: $(STAMP) ## run a monitor for ten minutes and check that memory stays flat
	$(BIN)/python -m tests.bench.soak $(ARGS)

wheel: $(STAMP) ## build dist/*.whl and the source archive
	$(BIN)/python -m build --outdir dist .

clean: ## remove what was built, not what was measured
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
