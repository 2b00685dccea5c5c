# The checks of this project; `make` lists them.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install check types quick test clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: ## make .venv with the project, editable, and the developers' tools
	test -d .venv || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install -q -e '.[dev]'

check: types ## ruff, its formatter and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: ## mypy alone
	$(BIN)/mypy

# Stores sync what they write, which costs nothing in memory; the tests need less than 1 GB there.
MEMORY = $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 2000000 { print "-p /dev/shm" }')

quick: ## the tests that are not marked `slow`
	scratch=$$(mktemp -d $(MEMORY)) && trap 'rm -rf "$$scratch"' EXIT && \
	$(BIN)/pytest -q -n auto --dist loadfile -m "not slow" --basetemp="$$scratch/tests"

test: ## all tests
	$(BIN)/pytest -q -n auto --dist loadfile

clean: ## remove build outputs and caches; keep .venv, stores and runs
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find extract fuse evaluate pipelines tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
