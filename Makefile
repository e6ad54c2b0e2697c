# Needs Python 3.11+ and package registries only. `make demo` and `make test` are the two commands to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-slow lint bench install install-test clean

# torch first: its CPU build satisfies every other package's range, so nothing pulls in CUDA.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Seamark needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[demo,test,lint,bench]'
	touch $@

install: $(VENV)/.demo

install-test: $(VENV)/.test

# The main job on the embedded default: ends with the result table and the path of the report.
demo: install
	$(BIN)/seamark demo

# Two workers with a thread each: threads of several workers would wait for one another.
test: install-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: install-test
	$(BIN)/python -m pytest -m slow

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

# One benchmark: make bench-safer. All of them, then every claim: make bench.
bench: install-test
	$(BIN)/python -m benchmarks all

bench-%: install-test
	$(BIN)/python -m benchmarks $*

clean:
	rm -rf $(VENV) runs build dist
