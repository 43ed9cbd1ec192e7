# `make` alone lists the targets. Needs Python 3.11+ and nothing else: everything is installed
# into .venv on first use, PostgreSQL and the checkers included. The work is done by dev/.

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

PROTOS := protos/marketplace/payments/v1
STUBS := client/src/marketplace/payments/v1
SOURCES := $(wildcard payment_service gateway console sidecar stripe_simulator dev chaos examples tests) client/src/marketplace/payments

# Two stamps: what the services need, and what tests and checkers need besides.
RUNTIME := $(VENV)/.installed-run
TOOLS := $(VENV)/.installed-dev
GENERATED := $(STUBS)/.generated
READY := $(GENERATED)
CHECKS := $(TOOLS) $(GENERATED)

# A process starts twice as fast from modules that were compiled before; `make clean` removes them.
unexport PYTHONDONTWRITEBYTECODE

# Extra arguments for pytest or a report: make test ARGS='-k capture -x'
ARGS ?=

# One run of the chaos: which faults, and for how long; SEEDS=8 makes eight runs one after the other.
SEED ?= 1
SECONDS ?= 30
SEEDS ?= 1

# SECONDS has a default for the chaos, so only one that was given counts for the soak.
SOAK_SECONDS := $(if $(filter command environment,$(firstword $(origin SECONDS))),$(SECONDS),600)

PAYMENTS ?= 1000000
MONTH ?= $(shell date -u +%Y-%m)

# The release to upgrade from; empty: this tree is upgraded to a made-up next release.
FROM ?=

.DEFAULT_GOAL := help
.PHONY: help run demo explain report bench bench-quick bench-idle bench-million bench-postgres soak test test-proofs coverage prove rehearse-upgrade rehearse-recovery chaos mutants lint format stubs breaking docs docs-serve migrate smoke-stripe manifests lock sbom audit client-wheel reset clean

help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

##@ Try it
run: $(READY) ## start everything and stay until Ctrl-C; VERBOSE=1 shows every webhook
	@$(RUN) -m dev run
demo: $(READY) ## watch payments move through escrow on a stack of their own, then exit
	@$(RUN) -m dev demo
explain: $(READY) ## beside `make run`: tell the story of a payment; ID=gig-1
	@test -n "$(ID)" || { echo "make explain ID=…: any id of a gig, a person, a payment or of Stripe's"; exit 2; }
	@$(RUN) -m dev beside explain "$(ID)"
report: $(READY) ## beside `make run`: report a month of the books; MONTH=2026-11 ARGS='--csv books'
	@$(RUN) -m dev beside report --month $(MONTH) $(ARGS)
reset: $(RUNTIME) ## delete the embedded database and the simulator's state
	@$(RUN) -m dev reset

##@ Change it
test: $(CHECKS) ## run all tests except the proofs; ARGS='-k capture' runs some of them
	@$(RUN) -m dev.testing test $(ARGS)
test-proofs: $(CHECKS) ## run a sample of each long proof, and the examples in TypeScript and Go
	@$(RUN) -m dev.testing proofs $(ARGS)
lint: $(CHECKS) ## check style, types and the rules of the protos
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy $(SOURCES)
	@$(BIN)/buf lint && $(BIN)/buf format --diff --exit-code && $(RUN) -m dev.contract && echo "lint: clean"
format: $(TOOLS) ## rewrite Python and protos in the agreed style
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format . && $(BIN)/buf format --write
stubs: $(CHECKS) ## generate the client's messages and stubs from protos/
breaking: $(TOOLS) ## compare the protos with main: nothing that a caller relies on may be removed
	@BUF=$(BIN)/buf bash .ci/breaking

##@ Read it
docs: $(RUNTIME) ## build the documentation into site/, with a search that needs no network
	@$(RUN) -m dev.site build
docs-serve: $(RUNTIME) ## build it and show it on http://127.0.0.1:8000 until Ctrl-C
	@$(RUN) -m dev.site serve

##@ Prove it
coverage: $(CHECKS) ## run all tests with coverage, which takes half as long again
	@$(RUN) -m dev.testing coverage $(ARGS)
prove: $(CHECKS) ## run every proof of tests/reliability in full; SEED=7 repeats a run
	@$(RUN) -m dev.testing prove $(ARGS)
rehearse-upgrade: $(CHECKS) ## upgrade a former release to this tree under load, and go back; FROM=<commit>
	@FROM=$(FROM) $(RUN) -m dev.testing rehearse upgrade
rehearse-recovery: $(CHECKS) ## restore the database to a point in time, from a base backup and the archived log
	@$(RUN) -m dev.testing rehearse recovery
chaos: $(READY) ## kill, pause and deceive real processes, then check every promise; SEED=1 SECONDS=30 SEEDS=1
	@$(RUN) -m chaos run --seed $(SEED) --seconds $(SECONDS) --seeds $(SEEDS)
mutants: $(CHECKS) ## put bugs into copies of the tree: the chaos and its tests must find each
	@$(RUN) -m chaos mutants
bench: $(CHECKS) ## measure what a call costs and what workers carry; writes docs/performance; 10 minutes
	@$(RUN) -m dev bench
bench-quick: $(CHECKS) ## compare what a call costs with docs/performance; fails if a call costs a third more
	@$(RUN) -m dev bench --quick
bench-idle: $(READY) ## measure what a replica costs while nobody calls; takes two minutes
	@$(RUN) -m dev bench-idle --each
bench-million: $(READY) ## measure reads and jobs over a million payments of history; PAYMENTS=100000
	@$(RUN) -m dev bench-million --payments $(PAYMENTS)
bench-postgres: $(READY) ## replay payments with pgbench: what one PostgreSQL carries; takes three minutes
	@$(RUN) -m dev bench-postgres
soak: $(READY) ## load two workers and measure their memory: 10 minutes, or SECONDS=60
	@$(RUN) -m dev soak --seconds $(SOAK_SECONDS)
smoke-stripe: $(READY) ## run the demo against Stripe's own test mode (needs test keys in the environment)
	@$(RUN) -m dev smoke-stripe

##@ Ship it
migrate: $(READY) ## apply the migrations to DATABASE_URL
	@$(RUN) -m payment_service migrate
manifests: $(RUNTIME) ## write deploy/kubernetes/ anew from the chart (needs Helm)
	@$(RUN) -m dev.manifests
lock: $(RUNTIME) ## write locked/ anew after a change of the requirements
	@$(RUN) -m dev.supply lock
sbom: $(RUNTIME) ## write the bill of materials into dist/, and check the licences
	@$(RUN) -m dev.supply sbom
audit: $(RUNTIME) ## compare the services' packages with the published vulnerabilities
	@$(RUN) -m dev.supply audit
client-wheel: $(READY) ## build the callers' package into dist/
	@rm -rf client/build && $(RUN) -m pip wheel --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --wheel-dir dist ./client && ls dist/*.whl
clean: ## remove everything that was built, .venv included; .data stays (see reset)
	@rm -rf $(VENV) $(STUBS) dist build site client/build client/src/*.egg-info htmlcov .coverage .coverage.* \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis \
		examples/go/gen $(addprefix examples/typescript/,gen dist node_modules)
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted installation is continued by the next make.
$(RUNTIME): locked/run.txt client/pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, or run make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m dev.install run && touch $@
$(TOOLS): locked/dev.txt $(RUNTIME)
	@$(RUN) -m dev.install dev && touch $@

# The directory is a prerequisite too, so that a removed file is noticed.
$(GENERATED): $(RUNTIME) $(PROTOS) $(wildcard $(PROTOS)/*.proto)
	@$(RUN) -m dev.stubs
