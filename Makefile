# Everything runs in .venv, which the files below it set up; `make help` lists what there is.

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

RUN_READY := $(VENV)/.run-ready
TEST_READY := $(VENV)/.test-ready
READERS := idx npy params model checkpoint predictions metrics lock
SECONDS := 60
BENCH_READY := .venv-bench/.ready
# The lock files are complete, and pip's own resolver trips over pins of packages with extras.
INSTALL := pip install -qq --no-deps --require-hashes
LOCK := uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

# Where `make server` listens; runs use it only if PREFECT_API_URL is set.
server: export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
deploy worker: export PREFECT_API_URL ?= http://127.0.0.1:4200/api

.DEFAULT_GOAL := help
.PHONY: help setup run repro screenshots compare verify server deploy worker test test-quick soak fuzz services check audit format bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(RUN_READY) ## install what running needs into .venv

run: $(RUN_READY) ## train and measure every variant on the small data set; FLAGS="--jobs 4 …"
	python -m pipeline.check
	python -m flows.reproduce report@digits $(FLAGS)

repro: $(RUN_READY) ## the same on every data set of params.yaml, MNIST included; FLAGS too
	python -m pipeline.check
	python -m flows.reproduce $(FLAGS)

screenshots: $(TEST_READY) ## photograph the report of the small data set for the docs
	python -m tests.browser reports/digits.html docs

compare: $(RUN_READY) ## what changed since the last commit, and whether it is better; REVS="REV REV …"
	python -m pipeline.compare $(REVS) $(FLAGS)

server: $(RUN_READY) ## start Prefect's server and its page, on this machine only
	prefect server start --host 127.0.0.1

deploy: $(RUN_READY) ## tell the server of the deployments, their schedule and the automations
	python -m flows.automations
	prefect --no-prompt work-pool create --type process --overwrite alexnet-mnist
	prefect --no-prompt deploy --all

worker: $(RUN_READY) ## run what the deployments start, until it is stopped
	prefect worker start --pool alexnet-mnist

test: $(TEST_READY) ## run all tests, three files at once
	pytest -n 3 --dist loadscope -rs

test-quick: $(TEST_READY) ## run the tests that take seconds
	pytest -m "not slow"

soak: $(TEST_READY) ## kill everything 25 times, fan out 50 times, fuzz each reader 5,000 times (hours)
	KILLS=25 FAN_OUTS=50 FUZZ=5000 pytest tests/flows/test_kills.py tests/faults

fuzz: $(TEST_READY) ## look for bytes that crash a reader, guided by coverage; READERS="idx …" SECONDS=60
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install -qq atheris
	for reader in $(READERS); do PYTHONPATH=$(VENV)/lib/python3.11/site-packages \
		.venv-fuzz/bin/python -m tests.faults.coverage_guided $$reader $(SECONDS) || exit 1; done

services: ## install what the tests of deployments use, from Debian's packages; needs root
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver postgresql

check: $(TEST_READY) ## lint, check formatting and types
	ruff check .
	ruff format --check .
	mypy
	pip check

audit: $(RUN_READY) ## ask for known vulnerabilities of the locked packages (needs a network)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install -qq pip-audit
	.venv-audit/bin/pip-audit --disable-pip --require-hashes -r requirements.txt

format: $(TEST_READY) ## format the code
	ruff format .
	ruff check --fix .

bench: $(RUN_READY) $(BENCH_READY) ## measure speed, memory and overhead beside Keras and PyTorch (an hour); PARTS="…"
	python -m benchmarks $(PARTS) $(FLAGS)

lock: ## pin and hash the dependencies anew (needs uv)
	$(LOCK) pyproject.toml -o requirements.txt
	$(LOCK) --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt

clean: ## remove the environments and caches; results and DVC's cache stay
	rm -rf $(VENV) .venv-bench .venv-audit .venv-fuzz .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_READY): requirements.txt | $(VENV)/bin/python
	$(INSTALL) -r requirements.txt
	touch $@

$(TEST_READY): requirements-dev.txt $(RUN_READY)
	$(INSTALL) -r requirements-dev.txt
	touch $@

$(BENCH_READY): benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -qq -r benchmarks/requirements.txt
	touch $@
