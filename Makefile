# The README's commands. Every target sets the project up first; the second time that takes no time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPING := build/typing
# Most tests wait for processes that they started.
TEST_PROCESSES ?= 2
IN_PARALLEL := --numprocesses=$(TEST_PROCESSES) --dist=worksteal
PYTEST_OPTIONS ?=
# onnxruntime-gpu, which also runs on the CPU, has wheels for Linux on x86-64 only (of what make runs on).
RUNTIME := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),gpu,cpu)

.PHONY: help setup demo test test-fast test-field lint pictures gpu clean

help:
	@echo "make demo       train, export, verify, measure, and leave a report in cnndeploy-demo/"
	@echo "make test       run the tests"
	@echo "make test-fast  run those that take no long time"
	@echo "make test-field run those on more networks, the server, ExecuTorch, Ray, apps and a browser, as CI does"
	@echo "make lint       ruff, the layers of the package, and mypy --strict"
	@echo "make pictures   make the pictures in docs/ again: ten minutes, on a machine that does nothing else"
	@echo "make gpu        test the CUDA path on a machine with an NVIDIA GPU: eight minutes, a report in build/gpu"
	@echo "make setup      install into $(VENV), which the others do by themselves"
	@echo "make clean      remove everything that make made"

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cnndeploy needs Python 3.11 or newer; say which with: make PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (once, some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
		--editable '.[torch,$(RUNTIME),timm,openvino,compress,serve,dev]'
	@touch $@

demo: setup
	@$(BIN)/cnndeploy demo --output cnndeploy-demo

test: setup
	@$(BIN)/python -m pytest $(IN_PARALLEL) -m "not field" $(PYTEST_OPTIONS)

test-fast: setup
	@$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow and not field" $(PYTEST_OPTIONS)

test-field: $(VENV)/.stamp-field build/kserve
	@$(BIN)/python -m pytest $(IN_PARALLEL) -m field $(PYTEST_OPTIONS)

# With ExecuTorch and Ray, which bring some eighty packages that nothing else needs.
$(VENV)/.stamp-field: $(VENV)/.stamp
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[executorch,ray]'
	@touch $@

# The Python classes of KServe and Kubernetes, without the packages that KServe's server needs.
build/kserve: $(VENV)/.stamp
	@rm -rf $@
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --no-deps --target $@ \
		kserve kubernetes
	@touch $@

# Type checkers and import-linter need the folders where their import names say they are.
lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@rm -rf $(TYPING) && mkdir -p $(TYPING)/cnndeploy
	@ln -s $(CURDIR)/tests $(CURDIR)/benchmarks $(TYPING)/
	@ln -s $(CURDIR)/cnndeploy/* $(CURDIR)/exporters $(CURDIR)/runtimes $(TYPING)/cnndeploy/
	@cd $(TYPING) && PYTHONPATH=tests $(CURDIR)/$(BIN)/lint-imports --no-cache --no-logo $(CURDIR)/pyproject.toml
	@cd $(TYPING) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p cnndeploy
	@cd $(TYPING) && MYPYPATH=tests:benchmarks $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
		--explicit-package-bases tests benchmarks

# What it ran for them stays in build/pictures; the pictures are in the repository.
pictures: setup
	@$(BIN)/python docs/pictures.py build/pictures

gpu: setup
	@$(BIN)/python benchmarks/gpu.py --output build/gpu

clean:
	rm -rf $(VENV) build dist *.egg-info cnndeploy-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find cnndeploy exporters runtimes tests examples -name __pycache__ -prune -exec rm -rf {} +
