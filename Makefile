# Everything runs in .venv, which the files below it set up; `make help` lists what there is.

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

RUN_READY := $(VENV)/.run-ready
TEST_READY := $(VENV)/.test-ready

.DEFAULT_GOAL := help
.PHONY: help setup run repro flow test test-quick check format bench-memory lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(RUN_READY) ## install what running needs into .venv

run: $(RUN_READY) ## train and measure every variant on the small data set; needs no network
	python -m pipeline.params
	dvc repro report@digits

repro: $(RUN_READY) ## the same on every data set of params.yaml, MNIST included
	python -m pipeline.params
	dvc repro

flow: $(RUN_READY) ## reproduce through Prefect: stages side by side, with retries
	python -m pipeline.params
	python -m flows.reproduce

test: $(TEST_READY) ## run all tests
	pytest

test-quick: $(TEST_READY) ## run the tests that take seconds
	pytest -m "not slow"

check: $(TEST_READY) ## lint, check formatting and types
	ruff check .
	ruff format --check .
	mypy

format: $(TEST_READY) ## format the code
	ruff format .
	ruff check --fix .

bench-memory: $(RUN_READY) ## measure evaluation's memory on MNIST, after `make repro`
	for variant in alexnet_norm alexnet_dropout lenet5; do \
		python -m benchmarks.evaluation_memory mnist $$variant || exit; \
	done

lock: ## pin and hash the dependencies anew (needs uv)
	uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		pyproject.toml -o requirements.txt
	uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt

clean: ## remove .venv and caches; results and DVC's cache stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_READY): requirements.txt | $(VENV)/bin/python
	pip install --quiet --require-hashes -r requirements.txt
	touch $@

$(TEST_READY): requirements-dev.txt $(RUN_READY)
	pip install --quiet --require-hashes -r requirements-dev.txt
	touch $@
