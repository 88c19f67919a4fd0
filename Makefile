# Every target makes its own virtual environment first; nothing has to be installed by hand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := $(wildcard rsky_pipeline/*/*.pyx rsky_pipeline/*/*/*.pyx)

MINUTES ?= 60
KILLS   ?= 50

.PHONY: demo run test test-fast test-long outages fuzz test-real test-host official mutate sanitize lint format docs bench binary lock clean help

help:
	@echo "make demo       the whole pipeline on a simulated network, offline: a minute"
	@echo "make run        all roles against the configured relays (default: bsky.network)"
	@echo "make test       all tests but those of test-long, test-real, test-host and official: about ten minutes on two cores"
	@echo "make test-fast  without crash, overload and whole-pipeline tests: about half of that"
	@echo "make test-long  tests that take minutes each, KILLS=50 random kills: about an hour"
	@echo "make outages    make each outage for real, as root, and write docs/outages.md: half an hour"
	@echo "make test-real  the pipeline on servers and networks of Debian's packages, as root: about half an hour"
	@echo "make test-host  the operator's pages on a Debian with systemd, as root: about a quarter of an hour"
	@echo "make official   the pipeline beside the official network of npm's packages: about an hour"
	@echo "make fuzz       mutated inputs of everything that reads a stranger's bytes: MINUTES=60"
	@echo "make sanitize   the compiled readers under the sanitizers of GCC: a quarter of an hour, MINUTES=5 of it mutated inputs"
	@echo "make mutate     plant bugs in the files that correctness rests on, each must fail a test: an hour and a half"
	@echo "make lint       ruff and mypy: a minute"
	@echo "make format     apply ruff's fixes"
	@echo "make docs       write the generated parts of docs/"
	@echo "make binary     dist/rsky-pipeline, one executable file to deploy (PURE=1: without compiled readers)"
	@echo "make bench      figures and ratios of one run, BENCH=name,... JSON=FILE: about fifteen minutes"
	@echo "make lock       resolve the packages of .ci/constraints.txt again"
	@echo "make clean      remove the virtual environment and everything generated"

$(STAMP): pyproject.toml setup.py .ci/constraints.txt $(NATIVE) $(wildcard rsky_pipeline/atproto/native/*.h) rsky_pipeline/atproto/native/common.pxd rsky_pipeline/atproto/native/libsecp256k1/SHA256SUMS
	@$(PYTHON) rsky_pipeline/development/prerequisites.py
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev,embedded]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/rsky-pipeline demo

run: $(STAMP)
	$(BIN)/rsky-pipeline run --role all

# One process a core, each with stores of its own.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-fast: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m 'not slow and not long and not real and not host and not official'

# What takes minutes and the whole machine: real program files under load, thousands of repos.
test-long: $(STAMP)
	KILLS=$(KILLS) $(BIN)/python -m pytest -m long -o faulthandler_timeout=0

# Each outage of docs/outages.md, as root, twice.
outages: $(STAMP)
	OUTAGES=docs/outages.json $(BIN)/python -m pytest -m long -o faulthandler_timeout=0 tests/outages
	$(BIN)/python -m rsky_pipeline.development.documents

# Real servers and networks of Debian's packages, as root. A program that is missing is a failure;
# SKIP=name,name leaves scenarios out.
test-real: $(STAMP)
	SKIP='$(SKIP)' $(BIN)/python -m pytest -m real -o faulthandler_timeout=0 tests/real

# The operator's pages on a Debian 12 that debootstrap makes once, as root. Nothing is skipped.
test-host: $(STAMP)
	$(BIN)/python -m tests.host
	$(BIN)/python -m pytest -m host -o faulthandler_timeout=0 tests/host

# The official network of npm's packages, RELEASE=0.0.280 for one release. Nothing is skipped.
official: $(STAMP)
	RELEASE='$(RELEASE)' $(BIN)/python -m tests.official
	RELEASE='$(RELEASE)' $(BIN)/python -m pytest -m official -o faulthandler_timeout=0 tests/official

# Guided by coverage where atheris has a wheel for this machine, else by mutation alone.
fuzz: $(STAMP)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: 'atheris>=3,<4'
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

# One-line bugs in the files that correctness rests on: the tests must find each. ONLY=name,name
mutate: $(STAMP)
	ONLY=$(ONLY) $(BIN)/python -m tests.mutation

# The compiled readers and libsecp256k1 with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(STAMP)
	$(BIN)/python -m tests.fuzz.sanitize $(if $(filter command line,$(origin MINUTES)),--minutes $(MINUTES))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m rsky_pipeline.development.documents

# BENCH=index,load selects; BENCH_ROWS=10000000 fills a larger database, which is kept.
bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(if $(JSON),--json $(JSON))

binary: $(STAMP)
	$(BIN)/python rsky_pipeline/development/binary.py $(if $(PURE),--pure)

# Resolve again for the oldest supported Python; the result pins every transitive package.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --extra dev --extra embedded --strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --output-file .ci/constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info $(NATIVE:.pyx=.c) $(NATIVE:.pyx=.*.so)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
