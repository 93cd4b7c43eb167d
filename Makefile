# Two commands: `make demo` and `make test`. Each sets up what it needs, once.
#
# For the native runtime (edge_runtime/native, C++): `make native` rebuilds it, `make sanitize` tests
# it under AddressSanitizer and UndefinedBehaviorSanitizer, `make wheel` makes what a device
# installs; scripts/aarch64.mk is for ARM.
#
# TORCH_INDEX names the index of PyTorch's CPU builds: without it pip takes the default build of
# torch, which on Linux brings several gigabytes of CUDA libraries that nothing here uses.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
RUN_ARGS ?=

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
# A build sees this environment instead of an isolated one: it needs executorch, and so does the
# server. Its folder is kept, so that only what changed is compiled anew.
BUILD = SKBUILD_BUILD_DIR=$(abspath $(VENV))/native $(PIP)
# Python edits are live; edited C++ is compiled by the next `make` of anything.
EDITABLE = $(BUILD) install --no-build-isolation --editable
BUILD_REQUIREMENTS = $$(sed -n '/^requires = \[/,/^]/s/^ *"\(.*\)",$$/\1/p' pyproject.toml)
NATIVE_SOURCES := CMakeLists.txt $(shell find edge_runtime/native -type f ! -name '*.py*')
BENCH_PROGRAMS = edge_runtime/bench_programs
SANITIZED = $(abspath $(VENV))/sanitize

.PHONY: demo test setup check native sanitize wheel clean

demo: $(VENV)/.server
	$(VENV)/bin/flexmoe run experiments/quickstart.toml $(RUN_ARGS)

test: check
	$(VENV)/bin/python -m pytest

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(VENV)/.dev

native: $(VENV)/.build
	$(EDITABLE) . --no-deps

wheel: $(BENCH_PROGRAMS)
	$(BUILD) wheel --no-deps --no-build-isolation --wheel-dir dist .

# What `flexmoe bench device` measures where nothing can export: wheels carry it.
$(BENCH_PROGRAMS): $(VENV)/.server $(wildcard model_export/*.py model_export/passes/*.py)
	$(VENV)/bin/flexmoe programs $@
	@touch $@

sanitize: $(SANITIZED)/.built
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 FLEXMOE_MUTANTS=300 \
	$(SANITIZED)/bin/python -m pytest -k "not stock" $(wildcard tests/native/test_*kernel*.py) \
		tests/native/test_session.py tests/native/test_fuzz.py

$(VENV)/.build: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "flexmoe needs Python 3.10 to 3.13; name one with: make PYTHON=python3.12"; exit 1; }
	@command -v $(CXX) >/dev/null || \
		{ echo "No C++ compiler ($(CXX)): on Debian and Ubuntu, apt install g++"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig as s; \
		sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' || \
		{ echo "No Python.h: on Debian and Ubuntu, apt install python3-dev"; exit 1; }
	@echo "Setting up $(VENV), once: torch, ExecuTorch, OR-Tools. This takes a minute or two."
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "No venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) install $(BUILD_REQUIREMENTS)
	@touch $@

$(VENV)/.server: $(VENV)/.build $(NATIVE_SOURCES)
	$(EDITABLE) '.[server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.build $(NATIVE_SOURCES)
	$(EDITABLE) '.[server,dev]'
	@touch $(VENV)/.server $@

# A venv of its own, with the other's packages on its path: its editable install is another build of
# the same sources. Python itself is not instrumented, so the sanitizer's library is preloaded.
$(SANITIZED)/.built: $(VENV)/.dev
	$(VENV)/bin/python -m venv --without-pip $(SANITIZED)
	@$(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(SANITIZED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	SKBUILD_BUILD_DIR=$(SANITIZED)/native SKBUILD_CMAKE_DEFINE=FLEXMOE_SANITIZE=ON \
		$(SANITIZED)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
		--no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist $(BENCH_PROGRAMS) .pytest_cache .mypy_cache .ruff_cache .hypothesis

-include scripts/aarch64.mk
