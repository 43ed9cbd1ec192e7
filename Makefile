# `make` alone lists what can be done. Needs Python 3.11+ and nothing else: everything is installed
# into .venv on first use, PostgreSQL and the checkers included.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

INSTALLED := $(VENV)/.installed
PROTOS := protos/marketplace/payments/v1
STUBS := client/src/marketplace/payments/v1
GENERATED := $(STUBS)/.generated
SOURCES := $(wildcard payment_service gateway stripe_simulator dev chaos tests) client/src/marketplace/payments

# Extra words for pytest: make test ARGS='-k capture -x'
ARGS ?=

# One run of the chaos: what befalls whom, and for how long; SEEDS=8 runs eight, one after the other.
SEED ?= 1
SECONDS ?= 30
SEEDS ?= 1

.DEFAULT_GOAL := help
.PHONY: help run demo bench test coverage prove chaos mutants lint format stubs breaking migrate smoke-stripe client-wheel reset clean

help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(GENERATED) ## bring up PostgreSQL, the Stripe simulator, the service and the gateway; Ctrl-C stops them
	@$(BIN)/python -m dev run

demo: $(GENERATED) ## the same, then walk payments through escrow and exit
	@$(BIN)/python -m dev demo

bench: $(GENERATED) ## what one worker carries while Stripe is slow; ends by itself in a minute
	@$(BIN)/python -m dev bench

# Two files at a time, since most tests wait for real processes. Those may be late on a crowded
# machine: what fails is tried once more, alone, with processes of its own; what fails twice is red.
IN_FULL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder
ONCE_MORE := --last-failed --last-failed-no-failures=none --maxfail=5 -rfEp

test: $(GENERATED) ## all tests (unit, integration, acceptance, reliability); ARGS='-k capture' narrows
ifneq ($(ARGS),)
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest $(IN_FULL) || { test $$? -eq 1 && echo "== once more what failed" && \
		$(BIN)/python -m pytest $(ONCE_MORE); }
endif

coverage: $(GENERATED) ## the same with coverage, which takes half as long again
	@$(BIN)/python -m pytest $(IN_FULL) --cov --cov-report=term

# The model waits for little but its own process, so its halves run side by side, before the rest.
PROVE_FULL := PROVE=full $(BIN)/python -m pytest --capture=no $(ARGS)
MODEL := tests/reliability/test_model.py

prove: $(GENERATED) ## every proof of tests/reliability in full; SEED=7 repeats a run
	@$(PROVE_FULL) $(MODEL) -k 'model_says and 0' & other=$$!; failed=0; \
		$(PROVE_FULL) $(MODEL) -k 'model_says and 1' || failed=1; wait $$other || failed=1; \
		$(PROVE_FULL) tests/reliability --ignore=$(MODEL) || failed=1; exit $$failed

chaos: $(GENERATED) ## kill, stop and lie to real processes, then check every promise; SEED=1 SECONDS=30 SEEDS=1
	@$(BIN)/python -m chaos run --seed $(SEED) --seconds $(SECONDS) --seeds $(SEEDS)

mutants: $(GENERATED) ## put bugs into copies of the tree: the chaos and its tests must catch each
	@$(BIN)/python -m chaos mutants

lint: $(GENERATED) ## style, types, and the protos' rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(SOURCES)
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@echo "lint: clean"

format: $(INSTALLED) ## rewrite Python and protos in the agreed style
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/buf format --write

stubs: $(GENERATED) ## generate the client's messages and stubs from protos/

breaking: $(INSTALLED) ## compare the protos with main: nothing that a caller relies on may go
	@BUF=$(BIN)/buf bash .ci/breaking

migrate: $(GENERATED) ## apply the migrations to DATABASE_URL
	@$(BIN)/python -m payment_service migrate

smoke-stripe: $(GENERATED) ## the demo's walk against Stripe's own test mode (needs test keys in the environment)
	@$(BIN)/python -m dev smoke-stripe

client-wheel: $(GENERATED) ## build the callers' package into dist/
	@rm -rf client/build
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist ./client
	@ls dist/*.whl

reset: $(INSTALLED) ## throw away the embedded database and the simulator's state
	@$(BIN)/python -m dev reset

clean: ## remove everything that was built, .venv included; .data stays (see reset)
	@rm -rf $(VENV) $(STUBS) dist build client/build client/src/*.egg-info htmlcov .coverage .coverage.* \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is simply taken up again.
$(INSTALLED): requirements.txt requirements-dev.txt constraints.txt client/pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, or say make PYTHON=/path/to/python3"; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); } \
		|| { echo "Python's venv module does not work here (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "installing requirements into $(VENV) (about a minute, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --no-build-isolation --editable ./client
	@touch $@

# The directory is a prerequisite too, so that a removed file is noticed. Generated beside and
# then exchanged: whoever imports the stubs meanwhile sees the old ones or the new.
$(GENERATED): $(INSTALLED) $(PROTOS) $(wildcard $(PROTOS)/*.proto)
	@echo "generating stubs from protos/"
	@rm -rf client/build/stubs && mkdir -p client/build/stubs
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=client/build/stubs \
		--mypy_out=quiet:client/build/stubs --grpc_python_out=client/build/stubs \
		--mypy_grpc_out=quiet:client/build/stubs $(PROTOS)/*.proto
	@echo '"""Messages and stubs, generated from protos/: change those, then run make stubs."""' \
		> client/build/stubs/marketplace/payments/v1/__init__.py
	@touch client/build/stubs/marketplace/payments/v1/py.typed client/build/stubs/marketplace/payments/v1/.generated
	@rm -rf $(STUBS) && mv client/build/stubs/marketplace/payments/v1 $(STUBS) && rm -rf client/build/stubs
