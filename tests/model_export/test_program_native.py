"""What is in the file of a native program: its operators, its memory, its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from executorch.exir._serialize._program import deserialize_pte_binary

from edge_runtime.executorch_trainer import ExecuTorchTrainer
from edge_runtime.layout import KERNEL_SETS, ROLES
from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.program_file import unseal
from edge_runtime.trainer import Batch, Rates
from model_export.passes.schedule import peak_bytes
from model_export.program import Program, export_program
from model_export.trace import native_graph
from tests.model_export.custom_models import CUSTOM, register
from tests.model_export.eager import SPECS, EagerSubset, K, subset_weights

Exported = Callable[..., Program]
MODELS = list(SPECS)


def forward(program: Program) -> Any:
    """The execution plan in a program's file."""
    plans = deserialize_pte_binary(bytes(unseal(program.data))).program.execution_plan
    return next(plan for plan in plans if plan.name == "forward")


def operators(program: Program) -> set[str]:
    return {f"{operator.name}.{operator.overload}" for operator in forward(program).operators}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", MODELS)
def test_a_native_program_needs_no_other_kernels(name: str, role: str, exported: Exported) -> None:
    program = exported(name, role, "native")
    assert all(o.startswith("flexmoe::") and o.endswith(".out") for o in operators(program))
    assert not any(o.startswith("flexmoe::") for o in operators(exported(name, role)))
    # Not even views: as many instructions as calls in the graph.
    graph = native_graph(SPECS[name], program.layout)
    calls = [node for node in graph.graph.nodes if "flexmoe" in str(node.target)]
    (chain,) = forward(program).chains
    assert len(chain.instructions) == len(calls)


@pytest.mark.parametrize("name", MODELS)
def test_a_native_program_leaves_inputs_and_results_to_its_caller(
    name: str, exported: Exported
) -> None:
    plan = forward(exported(name, "train", "native"))
    tensors = [plan.values[i].val for i in (*plan.inputs, *plan.outputs)]
    assert len({*plan.inputs, *plan.outputs}) == len(tensors)
    assert all(t.allocation_info is None and t.data_buffer_idx == 0 for t in tensors)
    layout = exported(name, "train").layout
    sizes = [plan.values[i].val.sizes for i in plan.outputs]
    assert sizes == [[], [K, 3], *(list(weight.shape) for weight in layout.weights)]


def test_the_arena_is_hardly_larger_than_what_is_alive_at_once() -> None:
    program = export_program(SPECS["cifar"], 4, 16, "train", "native")
    peak = peak_bytes(native_graph(SPECS["cifar"], program.layout))
    assert peak <= program.arena_bytes <= 1.05 * peak
    assert program.arena_bytes < 3 * 1024 * 1024


@pytest.mark.parametrize("name", CUSTOM)
def test_other_layers_export_for_the_native_trainer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = register(name, monkeypatch)
    program = export_program(spec, 2, 4, "train", "native")
    others = {o for o in operators(program) if not o.startswith("flexmoe::")}
    assert others - {"executorch_prim::et_view.default"} or not CUSTOM[name].stock
    outputs = forward(program).outputs
    assert len(set(outputs)) == len(outputs) == 2 + len(program.layout.weights)


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_constants_of_a_model_are_in_its_program(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, experts = register("constants", monkeypatch), [0, 3]
    weights, rng = subset_weights(spec, experts, seed=1), np.random.default_rng(2)
    x, y = rng.standard_normal((4, *spec.shape)).astype(np.float32), rng.integers(0, 3, 4)
    batch = Batch(x, y, np.full(4, 0.25, np.float32))
    trainer = NativeTrainer(1) if kernels == "native" else ExecuTorchTrainer()
    trainer.load(*(export_program(spec, 2, 4, role, kernels).data for role in ROLES))
    trainer.assign(experts, weights)
    loss, _, gradients = EagerSubset(spec, experts, weights).step(batch)
    assert trainer.evaluate(batch).loss == pytest.approx(loss, abs=1e-5)
    assert trainer.train_step(batch, Rates(learning_rate=1.0)).loss == pytest.approx(loss, abs=1e-5)
    for name, after in trainer.weights().items():
        np.testing.assert_allclose(weights[name] - after, gradients[name], atol=1e-5, err_msg=name)
