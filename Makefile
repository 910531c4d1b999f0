# make demo   sets up .venv and solves real problems with the embedded models
# make test   sets up .venv and runs the checks: formatting, types, tests
# make bench  sets up .venv and times kernels, sampler and generation beside their peers

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl') CMakeLists.txt pyproject.toml constraints/cpu.txt

.PHONY: demo test lint bench setup fuzz clean

demo: setup
	$(BIN)/wcse demo

test: setup lint
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest bench --benchmark-disable

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pytest bench --benchmark-json=bench/results/latest.json

setup: $(STAMP)

# torch first and pinned: a bare requirement would take the largest build there is.
$(STAMP): $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints/cpu.txt torch
	$(BIN)/python -m pip install --quiet -c constraints/cpu.txt scikit-build-core pybind11 cmake ninja
	$(BIN)/python -m pip install --quiet -c constraints/cpu.txt --no-build-isolation -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist
