# Every target does the set-up it needs in .venv. Variables, given after the target:
#   PYTHON=python3.12    the interpreter to make .venv with
#   PIP_ARGS=...         extra arguments for pip, such as an index that offers CPU builds of torch
#   ARGS=...             extra arguments for pytest or the demo, such as ARGS="-k plan"
#   VENV=.venv-3.12      another environment than .venv
#   CONSTRAINTS=FILE     other versions than those in constraints.txt; CONSTRAINTS= for the newest that pip finds
#   JOBS=3               processes of `make test`, of up to 3 GB each (tests wait a lot); JOBS=0 runs the tests in pytest's own
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-full test-oldest test-newest models ceph chaos interruptions bench bench-gpu bench-floors lint check-format format release clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## install the package and its tools into .venv
	@echo "$(VENV) is ready."

# Rewritten only when pyproject.toml or the constraints are newer; an existing .venv is brought up to date, not replaced.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
			{ echo "Python 3.11 to 3.13 is required; select one with: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 1; }; \
		{ $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip --version >/dev/null 2>&1; } || \
			{ echo "Cannot make a virtual environment in $(VENV): remove the folder, and make sure python3-venv is installed." >&2; exit 1; }; \
	fi
	@echo "Installing into $(VENV): a few minutes the first time, seconds when little has changed ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) $(CONSTRAINTS:%=-c %) -e '.[dev]'
	@touch $@

demo: $(STAMP) ## score the bundled corpus with the bundled model and report what is wrong
	@$(BIN)/tokloss demo $(ARGS)

# Tests of the report page need Chromium (apt-get install chromium) and are skipped without it.
# A file of tests stays in one process, in which its fixtures are made once; each process has a Ray and a moto of its own.
JOBS ?= 3
test: $(STAMP) ## run the tests, without the slow ones, in JOBS=3 processes
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP) ceph ## run only the slow tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

# A one-node Ceph gateway, as a second S3 server for the tests. Installing it needs root, and apt must offer it.
CEPH := radosgw ceph-mon ceph-osd
ceph:
	@for program in $(CEPH); do command -v $$program >/dev/null || missing=yes; done; test -z "$$missing" || { \
		test "$$(id -u)" = 0 && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(CEPH) >/dev/null; } || \
		echo "Cannot install Ceph (apt-get install $(CEPH)): the S3 tests run only against moto."

test-full: test test-slow ## run all tests

# Each in an environment of its own. PIP_ARGS may name an index with CPU builds of torch here too.
OLDEST ?= .venv-oldest
test-oldest: ## run the tests with the oldest versions that pyproject.toml allows (Python 3.11)
	@$(MAKE) --no-print-directory test VENV=$(OLDEST) CONSTRAINTS=constraints-oldest.txt

NEWEST ?= .venv-newest
test-newest: ## run the tests with the newest versions that pyproject.toml allows and pip finds today
	@rm -f $(NEWEST)/.installed
	@$(MAKE) --no-print-directory test VENV=$(NEWEST) CONSTRAINTS= PIP_ARGS='$(PIP_ARGS) -U --upgrade-strategy eager'

models: $(STAMP) ## score a tiny model of every architecture and write docs/models.md
	@$(BIN)/python -W ignore -m tests.long.model_families

KILLS ?= 50
SEED ?= 1
FUZZ_ROWS ?= 1000000
chaos: $(STAMP) ## kill processes at random on a small cluster, and mutate rows: KILLS=50 SEED=1 FUZZ_ROWS=1000000
	@$(BIN)/python -m tests.long.chaos --kills $(KILLS) --seed $(SEED)
	@$(BIN)/python -m tests.long.fuzz --rows $(FUZZ_ROWS) --seed $(SEED)

RUNS ?= 100
GONE ?= 20
interruptions: $(STAMP) ## interrupt runs at random, fill disks (as root), take storage away: RUNS=100 GONE=20 SEED=1
	@$(BIN)/python -m tests.long.interruptions --runs $(RUNS) --full-disk $(GONE) --storage-gone $(GONE) --seed $(SEED)

# Each prints a table and writes its figures as JSON. Only the ratios carry over from machine to machine.
RESULTS := benchmarks/results
PYTHON_BENCH := $(BIN)/python -W ignore
bench: $(STAMP) ## compare with alternatives, an hour on two idle cores: tables, and JSON in benchmarks/results
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) $(CONSTRAINTS:%=-c %) -e '.[dev,bench]'
	@mkdir -p $(RESULTS)
	@for size in small base; do for dtype in float32 bfloat16; do \
		$(PYTHON_BENCH) benchmarks/throughput.py --size $$size --dtype $$dtype --json $(RESULTS)/$$size-$$dtype-panx.json || exit 1; \
	done; done
	@$(PYTHON_BENCH) benchmarks/throughput.py --corpus tail --json $(RESULTS)/small-float32-tail.json
	@$(PYTHON_BENCH) benchmarks/throughput.py --against-ray --size demo --json $(RESULTS)/against-ray.json
	@$(PYTHON_BENCH) benchmarks/precision.py --json $(RESULTS)/precision.json
	@$(PYTHON_BENCH) benchmarks/stages.py --json $(RESULTS)/stages.json
	@$(PYTHON_BENCH) benchmarks/startup.py --json $(RESULTS)/startup.json
	@$(PYTHON_BENCH) benchmarks/scale.py --json $(RESULTS)/scale.json
	@$(PYTHON_BENCH) benchmarks/stand_in_gpu.py --json $(RESULTS)/stand_in_gpu.json
	@$(PYTHON_BENCH) benchmarks/nodes.py --json $(RESULTS)/nodes.json
	@$(PYTHON_BENCH) benchmarks/mining.py >$(RESULTS)/mining.json
	@$(PYTHON_BENCH) benchmarks/records.py --json $(RESULTS)/records.json
	@for what in "" "--plan 1000000" "--plan-rows 1000000000"; do \
		$(PYTHON_BENCH) benchmarks/many_files.py $$what --json $(RESULTS)/many_files.json || exit 1; \
	done
	@$(PYTHON_BENCH) benchmarks/several.py --json $(RESULTS)/several.json
	@$(PYTHON_BENCH) benchmarks/cost_against_size.py --json $(RESULTS)/cost_against_size.json
	@$(MAKE) --no-print-directory bench-floors

bench-gpu: $(STAMP) ## on a GPU: is it exact, how fast, does the job keep up; ARGS="--quick --device cpu --json FILE" tries it without
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) $(CONSTRAINTS:%=-c %) -e '.[dev,bench]'
	@mkdir -p $(RESULTS)
	@$(PYTHON_BENCH) benchmarks/gpu.py --json $(RESULTS)/gpu.json $(ARGS)

bench-floors: $(STAMP) ## compare the figures in benchmarks/results with benchmarks/floors.json
	@$(BIN)/python benchmarks/check_floors.py $(RESULTS)

lint: $(STAMP) ## check style, format, types, and which package imports which
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check-format: $(STAMP) ## check only the format
	@$(BIN)/ruff format --check

format: $(STAMP) ## format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

release: $(STAMP) ## build wheel and source distribution in dist/, and try the wheel outside the checkout
	@$(BIN)/python -m tests.long.release

clean: ## remove caches, build products and demo output, but not .venv
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis tokloss-demo*
	find . -name '.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +
