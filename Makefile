# Everything is a target here: `make` alone lists them. Needs GNU make, Python 3.11 or newer, and
# nothing else to `run`; `test` installs the servers it needs where it may (see deploy/local).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PYTHON := $(BIN)/python
# One environment for everything, from one lock: what runs is what was tested. Images take less.
READY := .venv/.synced
CODE := services libs deploy clients tests

# How many tests at once. They wait more than they work, so there are more of them than cores.
WORKERS ?= $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )))
# Files stay whole: their tests share what is costly to set up. They go out in the order of TESTS.
# Where a worker had to be ended (tests/time_limit.py) the run ends: xdist would wait for ever for what it had left.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
UNIT_PARALLEL := -n auto --dist worksteal --max-worker-restart 0
# Test folders that exist, what takes long first; TESTS=... and ARGS="-k telemetry -x" narrow a run down.
TESTS ?= tests/faults tests/system tests/contract tests/service tests/unit
ARGS ?=

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  \033[36m%-9s\033[0m %s\n", $$1, $$2}' Makefile

##@ Run

.PHONY: run
run: $(READY) ## the whole platform with a simulated plant, no server needed (PORT=8000 SIM=off)
	@exec $(PYTHON) -m deploy.edge $(if $(PORT),--port $(PORT)) $(if $(SIM),--sim $(SIM))

.PHONY: cluster
cluster: $(READY) ## the same as one process a service, with private RabbitMQ, Redis, PostgreSQL (PORT=, AMQP=1)
	@$(PYTHON) -m deploy.local.servers --install
	@exec $(PYTHON) -m deploy.local.cluster $(if $(PORT),--port $(PORT)) $(if $(AMQP),--amqp)

.PHONY: logs
logs: ## follow what the running platform and its servers write
	@find .run -type f \( -name '*.log' -o -name log \) -print0 2>/dev/null \
	  | xargs -0 --no-run-if-empty tail -n 20 -F

##@ Work

.PHONY: setup
setup: $(READY) ## make .venv with what requirements/dev.lock names

$(READY): requirements/dev.lock deploy/local/setup.sh
	@bash deploy/local/setup.sh

.PHONY: check
check: $(READY) ## what must hold before a commit: format, lint, types, imports, unit tests
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(PYTHON) -m mypy --no-error-summary $(CODE)
	@broken=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$broken"; exit 1; }
	@$(PYTHON) -m pytest -q $(UNIT_PARALLEL) tests/unit $(ARGS)

.PHONY: test
test: $(READY) ## everything but the long fault series, on real servers (TESTS= ARGS=)
	@$(PYTHON) -m deploy.local.servers --install amqp-consume mosquitto_pub coap-client-notls coap-client-openssl coap-client-gnutls ip nft slapd
	@$(PYTHON) -m pytest -q $(PARALLEL) -m "not long" $(TESTS) $(ARGS)

.PHONY: system
system: $(READY) ## the system tests alone
	@$(PYTHON) -m deploy.local.servers --install mosquitto_pub
	@$(PYTHON) -m pytest tests/system $(ARGS)

.PHONY: faults
faults: $(READY) ## the whole series: kill and stop things, and look for what is lost
	@$(PYTHON) -m deploy.local.servers --install ip nft
	@$(PYTHON) -m pytest tests/faults $(ARGS)

.PHONY: fuzz
fuzz: $(READY) ## thousands of random requests after the API's description (EXAMPLES=25 SEED=)
	@$(PYTHON) -m deploy.local.servers --install
	@FUZZ_EXAMPLES=$(if $(EXAMPLES),$(EXAMPLES),25) SEED=$(SEED) $(PYTHON) -m pytest -q -s tests/contract/test_fuzz.py $(ARGS)

.PHONY: soak
soak: $(READY) ## ten minutes under load; fails if anything is lost or grows (ARGS="--seconds 3600")
	@$(PYTHON) -m deploy.local.servers --install
	@$(PYTHON) -m tests.bench.soak $(ARGS)

.PHONY: bench
bench: $(READY) ## measure a promise (NAME=ingest, http, coap, fleet, historian …, ARGS="--mode edge --json")
	@$(PYTHON) -m deploy.local.servers --install $(if $(filter gateway,$(NAME)),wrk)
	@$(PYTHON) -m tests.bench.$(if $(NAME),$(NAME),ingest) $(ARGS)

##@ Database

SECTIONS := platform bus historian gateway tenancy ingest rules analytics ml alerting retention

.PHONY: migrate
migrate: $(READY) ## bring every schema of DATABASE_ADMIN_URL's database to the newest version
	@for section in $(SECTIONS); do \
	  echo "$$section"; $(PYTHON) -m alembic -n $$section upgrade head; done

.PHONY: revision
revision: $(READY) ## begin a migration (SECTION=alerting NAME="add a column")
	@test -n "$(SECTION)" -a -n "$(NAME)" || { echo 'usage: make revision SECTION=alerting NAME="add a column"'; exit 2; }
	@$(PYTHON) -m alembic -n $(SECTION) revision -m "$(NAME)"

##@ House

.PHONY: scan
scan: $(READY) ## look for dangerous code (bandit) and for secrets in what is committed
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive services libs deploy clients
	@$(PYTHON) -m deploy.scan

.PHONY: sdk
sdk: $(READY) ## make clients/sdk/python and clients/sdk/typescript from docs/api/openapi-v1.json (npm registry)
	@$(PYTHON) -m deploy.cli openapi --sdk > clients/sdk/typescript/openapi.json
	@$(BIN)/openapi-python-client generate --path clients/sdk/typescript/openapi.json --config clients/sdk/python.yaml \
	  --output-path clients/sdk/python --overwrite --meta uv
	@export PATH="$$PWD/$(BIN):$$PATH"; cd clients/sdk/typescript && npm ci --ignore-scripts --no-audit --no-fund --loglevel error \
	  && npm run --silent generate && npm run --silent check

.PHONY: audit
audit: $(READY) ## ask the advisory database about everything in the locks (needs the network)
	@for lock in requirements/*.lock; do echo "$$lock"; \
	  $(BIN)/pip-audit --require-hashes --disable-pip --progress-spinner off --requirement $$lock; done

.PHONY: sbom
sbom: $(READY) ## what is in each image, and in all: CycloneDX 1.6 in dist/sbom
	@mkdir -p dist/sbom
	@for lock in requirements/*.lock; do \
	  PYTHONWARNINGS=ignore::UserWarning $(BIN)/cyclonedx-py requirements $$lock --pyproject pyproject.toml --mc-type application --spec-version 1.6 \
	    --output-reproducible --validate --output-file dist/sbom/$$(basename $$lock .lock).cdx.json; done
	@ls dist/sbom

# Each image's own packages, at the versions of dev.lock: what runs is what was tested.
IMAGES := gateway tenancy ingest rules analytics ml alerting retention migrate
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header --no-annotate

.PHONY: lock
lock: $(READY) ## choose versions anew: requirements/*.lock from pyproject.toml
	@$(COMPILE) --upgrade --extra dev pyproject.toml -o requirements/dev.lock
	@for image in $(IMAGES); do \
	  $(COMPILE) --upgrade --constraint requirements/dev.lock --extra $$image $$(test $$image != ingest || echo --extra dtls) pyproject.toml \
	    -o requirements/$$image.lock; done
	@echo uv | $(COMPILE) --upgrade --constraint requirements/dev.lock - -o requirements/build.lock

.PHONY: clean
clean: ## remove .venv and caches; the edge's data in .run stay (rm -r .run removes them too)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
