# Needs make and Python >= 3.11. Set PYTHON=python3.12, for example, to use a different Python.
PYTHON ?= python3
PORT ?= 8001
BIN := .venv/bin
CHECKS := check-format check-lint check-types check-imports check-dependencies
# Write bytecode even if the environment disables it. Otherwise each test worker compiles all tests again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

.PHONY: help run test torture failover check $(CHECKS) compile-tests fmt install bench lock clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

run: .venv/runtime ## serve on http://127.0.0.1:8001 (PORT=... for a different port)
	$(BIN)/uvicorn mlapi.entrypoints.http:app --port $(PORT)

test: .venv/dev ## run all checks and all tests, with full branch coverage
	@$(MAKE) --no-print-directory -j --output-sync $(CHECKS) compile-tests
	$(PYTEST) -n 4 --dist worksteal --cov --cov-report=term

torture: .venv/dev ## run the fault tests with as many repetitions as RELIABILITY.md reports; takes about an hour
	$(PYTEST) tests/torture --torture

failover: .venv/dev .venv/failover/installed ## kill PostgreSQL primaries under Patroni and etcd on this machine; takes 6 minutes
	$(PYTEST) tests/failover --torture

check: .venv/dev ## check format, lint, types, import contracts, and dependencies for known vulnerabilities
	@$(MAKE) --no-print-directory -j --output-sync $(CHECKS)

check-format: .venv/dev
	$(BIN)/ruff format --check .
check-lint: .venv/dev
	$(BIN)/ruff check .
check-types: .venv/dev
	$(BIN)/mypy
check-imports: .venv/dev
	$(BIN)/lint-imports
check-dependencies: .venv/dev
	$(BIN)/python -m tests.dependency_audit requirements.lock
compile-tests: .venv/dev
	@$(PYTEST) --collect-only -qq >/dev/null || true # errors are reported by the tests

fmt: .venv/dev ## format the code, and fix lint errors where possible
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: .venv/dev ## install everything needed for development into .venv

bench: .venv/dev .venv/peers/installed ## measure mlapi, the ceiling and the peers; needs wrk, two cores, 10 GB and an hour
	$(BIN)/python -m bench.run $(BENCH)

lock: .venv/dev ## update the lock files (needs uv on the path)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--extra postgres --group build --upgrade pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--extra postgres --group build --group dev --group browser -c requirements.lock --upgrade pyproject.toml -o requirements-dev.lock \
		--no-emit-package pip # the virtual environment has its own pip

	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--upgrade bench/peers/requirements.in -o bench/peers/requirements.lock
	for name in build-requirements requirements; do uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --upgrade tests/failover/$$name.in -o tests/failover/$$name.lock || exit 1; done

clean: ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mlapi needs Python >= 3.11. Use a newer Python: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runtime: .venv/bin/python requirements.lock pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation --no-index -e .
	@touch $@

.venv/dev: .venv/runtime requirements-dev.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes --only-binary :all: -r requirements-dev.lock
	@touch $@

.venv/peers/installed: .venv/bin/python bench/peers/requirements.lock
	$(PYTHON) -m venv .venv/peers
	.venv/peers/bin/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes --only-binary :all: \
		-r bench/peers/requirements.lock
	@touch $@

.venv/failover/installed: .venv/bin/python tests/failover/build-requirements.lock tests/failover/requirements.lock
	$(PYTHON) -m venv .venv/failover
	.venv/failover/bin/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes --only-binary :all: \
		-r tests/failover/build-requirements.lock
	.venv/failover/bin/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes --only-binary :all: \
		--no-binary python-etcd,ydiff --no-build-isolation -r tests/failover/requirements.lock
	@touch $@
