# Two commands: `make demo` and `make test`. Each sets up what it needs, once.
#
# TORCH_INDEX names the index of PyTorch's CPU builds: without it pip takes the default build of
# torch, which on Linux brings several gigabytes of CUDA libraries that nothing here uses.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
RUN_ARGS ?=

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test setup check clean

demo: $(VENV)/.server
	$(VENV)/bin/flexmoe run experiments/quickstart.toml $(RUN_ARGS)

test: check
	$(VENV)/bin/python -m pytest

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(VENV)/.dev

$(VENV)/.server: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "flexmoe needs Python 3.10 to 3.13; name one with: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV), once: torch, ExecuTorch, OR-Tools. This takes a minute or two."
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "No venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) install --editable '.[server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.server
	$(PIP) install --editable '.[server,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
