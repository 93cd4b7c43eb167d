# The wheel for aarch64 Linux, cross-compiled, and its tests under qemu. See docs/aarch64.md.
# Uses the Makefile's VENV, PIP, BENCH_PROGRAMS, $(VENV)/.build and $(VENV)/.dev.

AARCH64 ?= build/aarch64

aarch64_sources = CMakeLists.txt pyproject.toml \
	$(shell find edge_runtime broker_server model_export device_profiles -name '*.py' \
		-o -name '*.cc' -o -name '*.h' -o -name '*.inc')
aarch64_ready = scripts/aarch64/tools.sh $(VENV)/bin/python

.PHONY: wheel-aarch64 test-aarch64

wheel-aarch64: $(AARCH64)/.wheel
	@mkdir -p dist
	@cp -v $(AARCH64)/wheel/*.whl dist

test-aarch64: $(VENV)/.dev $(AARCH64)/.installed
	FLEXMOE_AARCH64=$(AARCH64) $(VENV)/bin/python -m pytest \
		-p tests.aarch64.arm_native $(wildcard tests/native/*kernel*.py) \
		$(wildcard tests/edge_runtime/test_native_*.py) \
		tests/edge_runtime/test_trainer_contract.py
	FLEXMOE_AARCH64=$(AARCH64) $(VENV)/bin/python -m pytest tests/aarch64

$(AARCH64)/.sysroot: scripts/aarch64/sysroot.sh scripts/aarch64/python.sh | $(VENV)/.build
	@echo "Setting up $(AARCH64), once: a cross compiler, qemu, an arm64 Python."
	@$(aarch64_ready)
	@scripts/aarch64/sysroot.sh $(AARCH64)
	@scripts/aarch64/python.sh $(AARCH64)
	@touch $@

$(AARCH64)/.wheel: $(AARCH64)/.sysroot $(BENCH_PROGRAMS) scripts/aarch64/wheel.sh $(aarch64_sources)
	@$(aarch64_ready)
	@scripts/aarch64/wheel.sh $(VENV)/bin/python $(AARCH64)
	@touch $@

# With pip under qemu: it is the arm64 pip that must find the wheel fit for its machine.
$(AARCH64)/.installed: $(AARCH64)/.wheel
	@$(PIP) --python $(AARCH64)/venv/bin/python install --force-reinstall --no-deps \
		$(AARCH64)/wheel/*.whl
	@$(PIP) --python $(AARCH64)/venv/bin/python install $(AARCH64)/wheel/*.whl
	@touch $@
