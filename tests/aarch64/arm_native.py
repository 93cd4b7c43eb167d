"""A pytest plugin: puts the arm64 Python's native modules in the place of this machine's.

    FLEXMOE_AARCH64=build/aarch64 python -m pytest -p tests.aarch64.arm_native FILES

So the tests of the kernels and of the trainer, with PyTorch on this side, judge what runs under
qemu.
"""

from __future__ import annotations

import sys

import pytest

import edge_runtime.native  # noqa: F401  the package whose modules are replaced
from tests.aarch64.remote import Remote, arm_python

_remote = Remote(arm_python())
for _name in ("edge_runtime.native._native", "edge_runtime.native_trainer"):
    _module = _remote.module(_name)
    sys.modules[_name] = _module
    _package, _, _child = _name.rpartition(".")
    setattr(sys.modules[_package], _child, _module)

LEFT_OUT = (
    # They need the trainer in this process: its class, memory that is shared with it, a child.
    "test_make_trainer",
    "test_weights_are_copied_in_and_shown_without_a_copy",
    "test_another_assignment_copies_weights_and_nothing_else",
    "test_a_load_drops_what_was_loaded_first",
    "test_stock_kernels_take_as_many_threads_as_they_may",
    "test_both_runtimes_in_one_process",
    # Minutes under qemu; test_arm_trainer.py takes fewer steps.
    "test_a_training_curve[cifar-",
    "test_memory_need_is_what_is_held[cifar-",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.name.startswith(LEFT_OUT) or _stock_trainer(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _stock_trainer(item: pytest.Item) -> bool:
    """Whether it is a test of the contract with the other trainer, which needs PyTorch."""
    return isinstance(item, pytest.Function) and (
        hasattr(item, "callspec") and item.callspec.params.get("kind") == "executorch"
    )


def pytest_report_header() -> str:
    isas = _remote.module("edge_runtime.native._native").isas()
    return f"native: {', '.join(isas)} on {_remote.module('platform').machine()}"


def pytest_unconfigure() -> None:
    _remote.close()
