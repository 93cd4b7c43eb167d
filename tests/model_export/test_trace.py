"""The native graph of a step, run in torch on the operators' meaning, against eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule

from edge_runtime.parts import Tensors
from edge_runtime.trainer import Batch
from model_export.models import ModelSpec
from model_export.program import make_layout
from model_export.trace import native_graph
from tests.model_export.custom_models import CUSTOM, register
from tests.model_export.eager import SPECS, EagerSubset, subset_weights
from tests.model_export.traced import operators

BATCH = 4
# Every call of a training step; a model has two experts here. Views are free.
CALLS = {
    "digits": {
        "gemm": 17,  # 6 layers: forward, each weight, and the input of all but the first
        "sum_rows": 5,
        "relu_backward": 3,
        "add": 2,
        "stack": 1,
        "select": 2,
        "mixture_cross_entropy": 1,
    },
    "har": {
        "conv2d": 2,
        "conv2d_backward_weight": 2,
        "conv2d_backward_input": 1,
        "sum_channels": 2,
        "group_norm": 1,
        "group_norm_backward": 1,
        "mean_pool": 1,
        "mean_pool_backward": 1,
        "gemm": 15,
        "sum_rows": 4,
        "relu_backward": 3,
        "add": 2,
        "stack": 1,
        "select": 2,
        "mixture_cross_entropy": 1,
    },
    "cifar": {
        "conv2d": 4,
        "conv2d_backward_weight": 4,
        "conv2d_backward_input": 3,
        "sum_channels": 4,
        "group_norm": 4,
        "group_norm_backward": 4,
        "mean_pool": 3,
        "mean_pool_backward": 3,
        "gemm": 9,
        "sum_rows": 2,
        "add": 2,
        "stack": 1,
        "select": 2,
        "mixture_cross_entropy": 1,
    },
}


def graph_of(spec: ModelSpec, k: int, batch: int, role: str, balance: float = 0.0) -> GraphModule:
    return native_graph(spec, make_layout(spec, k, batch, role, "native"), balance)


def samples(spec: ModelSpec, batch: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 1.5, batch).astype(np.float32) / batch
    weight[1:2] = 0.0  # padding
    x = rng.standard_normal((batch, *spec.shape)).astype(np.float32)
    return Batch(x, rng.integers(spec.classes, size=batch), weight)


def run(
    graph: GraphModule, weights: Tensors, data: Batch, experts: Sequence[int]
) -> tuple[float, Tensor, list[Tensor]]:
    loss, stats, *gradients = graph(
        tuple(map(torch.tensor, weights.values())),
        torch.tensor(data.x),
        torch.tensor(data.y),
        torch.tensor(experts),
        torch.tensor(data.sample_weight),
    )
    return float(loss), stats, gradients


def check_step(spec: ModelSpec, k: int, batch: int, seed: int, balance: float = 0.0) -> GraphModule:
    """The training graph, after its results were compared with eager PyTorch's."""
    experts = sorted(np.random.default_rng(seed).choice(spec.experts, k, replace=False).tolist())
    weights, data = subset_weights(spec, experts, seed), samples(spec, batch, seed)
    graph = graph_of(spec, k, batch, "train", balance)
    loss, stats, gradients = run(graph, weights, data, experts)
    expected_loss, expected_stats, expected = EagerSubset(spec, experts, weights).step(
        data, balance
    )
    assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(stats, expected_stats, rtol=1e-4, atol=1e-4)
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        value = expected.get(name, np.zeros_like(weight))  # of a weight that the loss ignores
        np.testing.assert_allclose(gradient, value, rtol=1e-4, atol=1e-5, err_msg=name)
    return graph


@pytest.mark.parametrize("name", SPECS)
def test_a_step_of_a_reference_model(name: str) -> None:
    graph = check_step(SPECS[name], 2, BATCH, seed=1)
    left = operators(graph)
    assert not left.pop("aten.reshape", 0), "views that nobody needs"
    assert left == {f"flexmoe.{call}": count for call, count in CALLS[name].items()}


@pytest.mark.parametrize(
    ("name", "shape", "experts", "k", "batch"),
    [
        ("digits", (1,), 3, 1, 1),
        ("digits", (7,), 5, 5, 3),
        ("har", (1, 1, 8), 2, 1, 1),
        ("har", (3, 1, 37), 4, 3, 2),
        ("cifar", (1, 1, 1), 2, 2, 2),
        ("cifar", (3, 9, 7), 4, 1, 1),
        ("fashion", (1, 28, 28), 3, 3, 2),
    ],
)
def test_a_step_of_odd_sizes(
    name: str, shape: tuple[int, ...], experts: int, k: int, batch: int
) -> None:
    left = operators(check_step(ModelSpec(name, shape, 4, experts), k, batch, seed=2))
    assert all(call.startswith("flexmoe.") or call == "aten.reshape" for call in left)


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(0, 100),
    st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=12)
def test_a_step_of_any_size(k: int, batch: int, inputs: int, seed: int, balance: float) -> None:
    check_step(replace(SPECS["digits"], shape=(inputs,)), k, batch, seed, balance)


@pytest.mark.parametrize("name", SPECS)
def test_a_step_with_a_balance_term(name: str) -> None:
    """It costs no call: the loss has another operator."""
    calls = dict(CALLS[name])
    calls["balanced_mixture_cross_entropy"] = calls.pop("mixture_cross_entropy")
    left = operators(check_step(SPECS[name], 2, BATCH, seed=1, balance=0.5))
    left.pop("aten.reshape", None)
    assert left == {f"flexmoe.{call}": count for call, count in calls.items()}


@pytest.mark.parametrize("name", SPECS)
def test_evaluation_is_the_step_without_gradients(name: str) -> None:
    spec, experts = SPECS[name], [1, 6]
    weights, data = subset_weights(spec, experts, 3), samples(spec, BATCH, 3)
    graph = graph_of(spec, 2, BATCH, "evaluate")
    loss, stats, gradients = run(graph, weights, data, experts)
    expected_loss, expected_stats, _ = EagerSubset(spec, experts, weights).step(data)
    assert loss == pytest.approx(expected_loss, abs=1e-5) and not gradients
    np.testing.assert_allclose(stats, expected_stats, rtol=1e-4, atol=1e-5)
    left = operators(graph)
    assert left["flexmoe.mixture_evaluate"] == 1 and left.total() < 20
    assert all(call.startswith("flexmoe.") and "backward" not in call for call in left)


@pytest.mark.parametrize("name", CUSTOM)
def test_a_step_of_a_model_with_other_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = operators(check_step(register(name, monkeypatch), 2, BATCH, seed=4))
    stock = {call for call in left if not call.startswith("flexmoe.")} - {"aten.reshape"}
    assert CUSTOM[name].stock <= stock and bool(CUSTOM[name].stock) == bool(stock)
