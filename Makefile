# Needs make and Python >= 3.11. Set PYTHON=python3.12, for example, to use a different Python.
PYTHON ?= python3
PORT ?= 8001
VENV ?= .venv
BIN := $(VENV)/bin
CHECKS := check-format check-lint check-types check-imports check-dependencies
# Write bytecode even if the environment disables it. Otherwise each test worker compiles all tests again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
ALL_BUT_FAULTS := -n 4 --dist worksteal --ignore=tests/torture
# These run in the process of the tests, so they also show which lines are covered.
QUICK_FAULTS := $(addprefix tests/torture/test_,postgresql_faults.py disk_faults.py power_loss.py)
# The test client of old Starlette versions leaves streams for the garbage collector.
LOWEST_OPTIONS := -W ignore::pytest.PytestUnraisableExceptionWarning

PIP_INSTALL := -m pip install --disable-pip-version-check -q --no-deps
INSTALL_LOCKED := $(PIP_INSTALL) --require-hashes --only-binary :all:
INSTALL_MLAPI := $(PIP_INSTALL) --no-build-isolation --no-index -e .
LOCK := uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade
# The virtual environments have their own pip.
LOCK_DEV := $(LOCK) --extra postgres --extra testing --group build --group examples --group dev --group browser --no-emit-package pip

define check_python
@$(PYTHON) -c '' 2>/dev/null || { echo "Cannot run $(PYTHON): install it, or name a different Python: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "mlapi needs Python >= 3.11. Use a newer Python: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
endef

.PHONY: help run test faults screenshots test-lowest test-python run-tests dist torture failover check $(CHECKS) compile-tests fmt install bench lock clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

run: $(VENV)/runtime ## serve on http://127.0.0.1:8001 (PORT=... for a different port)
	$(BIN)/uvicorn mlapi.entrypoints.http:app --port $(PORT)

test: $(VENV)/dev ## run all checks, and all tests but the slow fault tests, with full branch coverage
	@$(MAKE) --no-print-directory -j --output-sync $(CHECKS) compile-tests
	$(PYTEST) $(ALL_BUT_FAULTS) $(filter-out tests/torture/,$(wildcard tests/*/)) examples $(QUICK_FAULTS) --cov --cov-report=term

faults: $(VENV)/dev ## run each fault test with few repetitions; takes 4 minutes
	$(PYTEST) tests/torture -n 4 --dist worksteal

screenshots: $(VENV)/dev ## take screenshots of every page, in light and dark mode, wide and narrow; needs Chromium
	$(PYTEST) tests/pages -n 2 --screenshots screenshots
	@echo "The screenshots are in the folder screenshots."

test-lowest: .venv/lowest/installed ## run the same tests with the lowest supported version of each dependency, on Python 3.11
	$(MAKE) --no-print-directory run-tests VENV=.venv/lowest TESTS='$(LOWEST_OPTIONS) $(TESTS)'

test-python: ## run the same tests on another Python: make test-python PYTHON=python3.13
	$(check_python)
	$(MAKE) --no-print-directory .venv/$(notdir $(PYTHON))/dev run-tests VENV=.venv/$(notdir $(PYTHON))

run-tests: # the tests without the checks and the fault tests; TESTS=... for some of them
	$(PYTEST) $(ALL_BUT_FAULTS) $(TESTS)

dist: $(VENV)/dev .venv/distributions/installed ## build the wheel and the source distribution, and test them in fresh environments
	rm -rf dist
	$(BIN)/hatchling build -d dist -t sdist -t wheel
	.venv/distributions/bin/twine check --strict dist/*
	$(PYTEST) tests/distributions --distributions dist

torture: $(VENV)/dev ## run the fault tests with as many repetitions as RELIABILITY.md reports; takes about an hour
	$(PYTEST) tests/torture --torture

failover: $(VENV)/dev .venv/failover/installed ## kill PostgreSQL primaries under Patroni and etcd on this machine; takes 6 minutes
	$(PYTEST) tests/failover --torture

check: $(VENV)/dev ## check format, lint, types, import contracts, and dependencies for known vulnerabilities
	@$(MAKE) --no-print-directory -j --output-sync $(CHECKS)

check-format: $(VENV)/dev
	$(BIN)/ruff format --check .
check-lint: $(VENV)/dev
	$(BIN)/ruff check .
check-types: $(VENV)/dev
	$(BIN)/mypy
check-imports: $(VENV)/dev
	$(BIN)/lint-imports
check-dependencies: $(VENV)/dev
	$(BIN)/python -m tests.dependency_audit requirements.lock
compile-tests: $(VENV)/dev
	@$(PYTEST) --collect-only -qq >/dev/null || true # errors are reported by the tests

fmt: $(VENV)/dev ## format the code, and fix lint errors where possible
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/dev ## install everything needed for development into .venv

bench: $(VENV)/dev .venv/peers/installed ## measure mlapi, the ceiling and the peers; needs wrk, two cores, 10 GB and 45 minutes
	$(BIN)/python -m bench.run $(BENCH)

lock: $(VENV)/dev ## update the lock files (needs uv on the path)
	$(LOCK) --universal --extra postgres --group build --group examples pyproject.toml -o requirements.lock
	$(LOCK_DEV) --universal -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(LOCK_DEV) --resolution lowest-direct --only-binary :all: --group lowest pyproject.toml -o requirements-lowest.lock
	for name in bench/peers/requirements tests/failover/build-requirements tests/failover/requirements tests/distributions/requirements; do \
		$(LOCK) --universal $$name.in -o $$name.lock || exit 1; done

clean: ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*

$(VENV)/bin/python:
	$(check_python)
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: $(VENV)/bin/python requirements.lock pyproject.toml
	$(BIN)/python $(INSTALL_LOCKED) -r requirements.lock
	$(BIN)/python $(INSTALL_MLAPI)
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements-dev.lock
	$(BIN)/python $(INSTALL_LOCKED) -r requirements-dev.lock
	@touch $@

.venv/lowest/installed: requirements-lowest.lock pyproject.toml
	$(check_python)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "The lowest versions have no wheels for a newer Python: make test-lowest PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv/lowest
	.venv/lowest/bin/python $(INSTALL_LOCKED) -r requirements-lowest.lock
	.venv/lowest/bin/python $(INSTALL_MLAPI)
	@touch $@

.venv/distributions/installed: $(VENV)/bin/python tests/distributions/requirements.lock
	$(PYTHON) -m venv .venv/distributions
	.venv/distributions/bin/python $(INSTALL_LOCKED) -r tests/distributions/requirements.lock
	@touch $@

.venv/peers/installed: $(VENV)/bin/python bench/peers/requirements.lock
	$(PYTHON) -m venv .venv/peers
	.venv/peers/bin/python $(INSTALL_LOCKED) -r bench/peers/requirements.lock
	@touch $@

.venv/failover/installed: $(VENV)/bin/python tests/failover/build-requirements.lock tests/failover/requirements.lock
	$(PYTHON) -m venv .venv/failover
	.venv/failover/bin/python $(INSTALL_LOCKED) -r tests/failover/build-requirements.lock
	.venv/failover/bin/python $(INSTALL_LOCKED) --no-binary python-etcd,ydiff --no-build-isolation -r tests/failover/requirements.lock
	@touch $@
