# Each target makes .venv when it is missing or older than its requirements.

PYTHON ?= python3
BIN := .venv/bin
# pip itself would print a line for each package.
install = @echo "Installing $(1) into .venv; this can take minutes." && \
  $(BIN)/python -m pip install --quiet $(addprefix --requirement=,$(1))

.PHONY: train check test test-parity test-slow test-cluster coverage lint \
  format docs clean

train: .venv/installed
	$(BIN)/python main.py

# For every change: lint, types, and the tests of what changed.
check: lint
	@tests=$$($(BIN)/python -m tests.affected) && \
	  echo 'Tests of what differs from origin/main:' && \
	  printf '  %s\n' $$tests && \
	  $(BIN)/python -m pytest -m 'not slow' $$tests

test: .venv/installed-tests
	$(BIN)/python -m pytest -m 'not slow'

# `make test` and `make test-slow` run these too once PyTorch is installed, and
# those of ONNX and of the page in a browser after `make .venv/installed-all`.
test-parity: .venv/installed-parity
	$(BIN)/python -m pytest tests/models/test_parity.py \
	  tests/training/test_parity.py

test-slow: .venv/installed-tests
	$(BIN)/python -m pytest -m 'slow and not cluster' \
	  --dist=load --maxschedchunk=1

# Slurm on this machine, one job after another; needs Debian's slurm-wlm and
# munge.
test-cluster: .venv/installed-tests
	$(BIN)/python -m pytest --numprocesses=0 tests/cluster

# Coverage of resnet/ by `make test`, including the processes that tests start.
coverage: .venv/installed-tests
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m 'not slow'
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --skip-empty

lint: .venv/installed-tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright

format: .venv/installed-tests
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The site, in site/; a warning is an error (not with --quiet, which hides it).
# The variable silences advertising.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv site .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python 3.11 or newer is needed, {sys.executable} is {sys.version}")'
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/pip
	$(call install,requirements.txt)
	touch $@

.venv/installed-tests: tests/requirements.txt requirements-serve.txt \
  .venv/installed
	$(call install,tests/requirements.txt requirements-serve.txt)
	touch $@

.venv/installed-parity: tests/requirements-parity.txt .venv/installed-tests
	$(call install,tests/requirements-parity.txt)
	touch $@

.venv/installed-all: tests/requirements-all.txt requirements-onnx.txt \
  .venv/installed-parity
	$(call install,tests/requirements-all.txt)
	$(call install,requirements-onnx.txt) --no-deps
	touch $@

.venv/installed-docs: docs/requirements.txt | .venv/bin/pip
	$(call install,docs/requirements.txt)
	touch $@
