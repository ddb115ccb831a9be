# Everything runs in .venv, which is set up as needed; `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

READERS := idx zip npy params model checkpoint predictions metrics lock
SECONDS := 60
ADDRESS ?= tcp://127.0.0.1:8786
LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

deploy worker: export PREFECT_API_URL ?= http://127.0.0.1:4200/api

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev setup-cluster scheduler cluster-worker cluster-repro run repro selection record serve release screenshots compare unchanged verify readme server deploy worker test test-quick soak fuzz services check audit format bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what running needs into .venv
	@$(PYTHON) scripts/setup_venv.py $(VENV) requirements.txt flows

setup-dev: ## install what tests and checks need as well
	@$(PYTHON) scripts/setup_venv.py $(VENV) requirements-dev.txt flows

setup-cluster: ## install what a cluster of machines needs as well
	@$(PYTHON) scripts/setup_venv.py $(VENV) requirements-cluster.txt flows

run: setup ## train and evaluate every variant on the small data set; FLAGS="--jobs 4 …"
	$(BIN)/dvc-flow report@digits $(FLAGS)

repro: setup ## the same on every data set of params.yaml, MNIST included; takes FLAGS too
	$(BIN)/dvc-flow $(FLAGS)

selection: setup ## train the recipes that are compared by validation alone, and rank them (hours)
	$(BIN)/dvc-flow selection/dvc.yaml $(FLAGS)
	$(BIN)/python -m pipeline.rank

record: setup ## train and evaluate what params.yaml lists under record (hours; goes on where it was)
	$(BIN)/dvc-flow record/dvc.yaml $(FLAGS)

serve: setup ## answer pictures over HTTP, and show a page to draw on; FLAGS="--port 8000 …"
	$(BIN)/python -m pipeline.serve $(FLAGS)

release: setup ## promote MODEL="DATASET VARIANT" of the last commit, unless it is worse
	$(BIN)/python -m pipeline.release $(MODEL) $(FLAGS)

compare: setup ## what changed since the last commit, and whether it is better; REVS="REV REV …"
	$(BIN)/python -m pipeline.compare $(REVS) $(FLAGS)

unchanged: setup ## check that models, curves and predictions are those of the last commit
	@git diff --exit-code --stat HEAD -- results ':!results/**/profile.json' ':!results/**/memory.csv'
	@$(BIN)/python -m scripts.unchanged

verify: setup ## look for damaged files in DVC's cache, and remove them
	$(BIN)/dvc-flow verify

readme: setup ## write the README's table of results
	$(BIN)/python -m scripts.readme

server: setup ## start Prefect's server and its page, on this machine only
	$(BIN)/python -m prefect server start --host 127.0.0.1

deploy: setup ## register the deployments, their schedule and the automations with the server
	$(BIN)/dvc-flow deployable
	$(BIN)/dvc-flow automations
	$(BIN)/python -m prefect --no-prompt work-pool create --type process --overwrite alexnet-mnist
	$(BIN)/python -m prefect --no-prompt deploy --all

worker: setup ## run what the deployments start, until stopped
	$(BIN)/python -m prefect worker start --pool alexnet-mnist

test: setup-dev ## run all tests, three files at a time
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -rs

test-quick: setup-dev ## run the tests that take seconds
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"

check: setup-dev ## lint, check formatting and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pip check

format: setup-dev ## format the code
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .
scheduler: setup-cluster ## let machines meet that run stages (docs/cluster.md); FLAGS="--host … --tls …"
	$(BIN)/dvc-flow scheduler $(FLAGS)

cluster-worker: setup-cluster ## run stages for the scheduler at ADDRESS; FLAGS="--jobs 4 --tls …"
	$(BIN)/dvc-flow worker $(ADDRESS) $(FLAGS)

cluster-repro: setup-cluster ## run the graph on the workers of the scheduler at ADDRESS; takes FLAGS
	$(BIN)/dvc-flow --cluster $(ADDRESS) $(FLAGS)

bench: setup ## measure speed, memory and overhead next to Keras and PyTorch (an hour); PARTS="…"
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -qq -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks $(PARTS) $(FLAGS)

soak: setup-dev ## kill everything 25 times, fan out 50 times, fuzz each reader 5,000 times (hours)
	KILLS=25 FAN_OUTS=50 FUZZ=5000 GRAPHS=300 ALL_ON_POSTGRESQL=1 $(BIN)/python -m pytest \
		tests/flows/test_kills.py tests/flows/test_deployment.py \
		tests/flows/test_property.py tests/faults

fuzz: setup-dev ## look for bytes that crash a reader, guided by coverage; READERS="idx …" SECONDS=60
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install -qq atheris
	packages=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	for reader in $(READERS); do PYTHONPATH=$$packages \
		.venv-fuzz/bin/python -m tests.faults.coverage_guided $$reader $(SECONDS) || exit 1; done

screenshots: setup-dev ## photograph the report of the small data set for the docs
	$(BIN)/python -m tests.browser reports/digits.html docs

services: ## install what the tests of deployments use, from Debian's packages; needs root
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver postgresql

audit: setup ## look for known vulnerabilities of the locked packages (needs a network)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install -qq pip-audit
	.venv-audit/bin/pip-audit --disable-pip --require-hashes -r requirements.txt

lock: ## pin and hash the dependencies anew (needs uv)
	$(LOCK) pyproject.toml -o requirements.txt
	$(LOCK) --extra cluster -c requirements.txt pyproject.toml -o requirements-cluster.txt
	$(LOCK) --extra dev -c requirements-cluster.txt pyproject.toml -o requirements-dev.txt

clean: ## remove the environments and caches; results and DVC's cache stay
	rm -rf $(VENV) .venv-bench .venv-audit .venv-fuzz .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
