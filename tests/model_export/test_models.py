"""The reference models: shapes, the gate over assigned experts, subsets, seeds, wrong shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_runtime.errors import ConfigError
from model_export.models import MODELS, ModelSpec, MoE, make_model
from model_export.split import to_model, to_weights
from tests.model_export.eager import SPECS, subset

ALL_SPECS = {**SPECS, "fashion": ModelSpec("fashion", (1, 28, 28), classes=10, experts=8)}


def samples(spec: ModelSpec, n: int = 5) -> Tensor:
    return torch.randn(n, *spec.shape, generator=torch.Generator().manual_seed(0))


def test_every_model_is_tested() -> None:
    assert ALL_SPECS.keys() == MODELS.keys()


@pytest.mark.parametrize("slots", [None, 1, 3])
@pytest.mark.parametrize("spec", ALL_SPECS.values(), ids=ALL_SPECS)
def test_shapes(spec: ModelSpec, slots: int | None) -> None:
    model = MoE(spec, slots)
    k = spec.experts if slots is None else slots
    logits, weights = model(samples(spec), torch.arange(k))
    assert logits.shape == (5, spec.classes) and weights.shape == (5, k)
    assert len(model.experts) == k
    assert model.gate.weight.shape[0] == spec.experts and model.gate.bias is None


@pytest.mark.parametrize("spec", ALL_SPECS.values(), ids=ALL_SPECS)
def test_every_weight_is_a_parameter_that_the_loss_reaches(spec: ModelSpec) -> None:
    """What travels is `named_parameters`, and the exporter needs each one's gradient."""
    model = MoE(spec, slots=2)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    logits, _ = model(samples(spec), torch.tensor([1, 4]))
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.fixture(scope="module")
def full() -> MoE:
    return make_model(SPECS["digits"], seed=1)


@given(experts=st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
@settings(max_examples=40)
def test_the_gate_is_a_softmax_over_the_assigned_experts(full: MoE, experts: list[int]) -> None:
    spec = full.spec
    model = MoE(spec, slots=len(experts))
    to_model(model, subset(to_weights(full), experts))
    x, ids = samples(spec), torch.tensor(experts)
    logits, weights = model(x, ids)
    scores = (full.backbone(x) @ full.gate.weight.T).detach().numpy().astype(np.float64)
    odds = np.exp(scores[:, experts])
    np.testing.assert_allclose(
        weights.detach().numpy(), odds / odds.sum(1, keepdims=True), rtol=1e-5, atol=1e-6
    )
    unassigned = [e for e in range(spec.experts) if e not in experts]
    with torch.no_grad():
        model.gate.weight[unassigned] += 100.0
    changed, _ = model(x, ids)
    assert torch.equal(changed, logits)


@pytest.mark.parametrize("spec", ALL_SPECS.values(), ids=ALL_SPECS)
def test_a_subset_is_the_full_model_restricted(spec: ModelSpec) -> None:
    full, x, experts = make_model(spec, seed=2), samples(spec), [1, 4, 6]
    model = MoE(spec, slots=3)
    to_model(model, subset(to_weights(full), experts))
    logits, weights = model(x, torch.tensor(experts))
    # The full model's gate weights of these experts, scaled to sum to 1, mix their outputs.
    _, all_weights = full(x, full.all_experts())
    kept = all_weights[:, experts] / all_weights[:, experts].sum(1, keepdim=True)
    features = full.backbone(x)
    outputs = [full.experts[e](features) for e in experts]
    mixed = sum(kept[:, i, None] * output for i, output in enumerate(outputs))
    torch.testing.assert_close(weights, kept)
    torch.testing.assert_close(logits, mixed)


def test_all_experts_in_any_order_are_the_full_model(full: MoE) -> None:
    order, x = [3, 0, 7, 1, 6, 2, 5, 4], samples(full.spec)
    model = MoE(full.spec)
    to_model(model, subset(to_weights(full), order))
    expected, weights = full(x, full.all_experts())
    logits, permuted = model(x, torch.tensor(order))
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(permuted, weights[:, order])


def test_weights_depend_on_the_seed_only() -> None:
    spec = SPECS["har"]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = to_weights(make_model(spec, seed=7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = to_weights(make_model(spec, seed=7)), to_weights(make_model(spec, seed=8))
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)
    assert any((other[name] != value).any() for name, value in first.items())
    experts = [first[f"experts.{e}.0.weight"] for e in range(spec.experts)]
    assert all((experts[0] != expert).any() for expert in experts[1:]), "experts begin alike"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("digits", (8, 8)),
        ("digits", ()),
        ("digits", (0,)),
        ("har", (9, 128)),
        ("har", (128, 9, 1)),
        ("har", (9, 1, 7)),
        ("har", (0, 1, 128)),
        ("cifar", (32, 32)),
        ("cifar", (3, 0, 32)),
        ("fashion", (784,)),
    ],
)
def test_data_of_a_wrong_shape_is_a_config_error(name: str, shape: tuple[int, ...]) -> None:
    spec = replace(ALL_SPECS[name], shape=shape)
    with pytest.raises(
        ConfigError, match=f"model '{name}' takes .*, the data has shape "
    ) as caught:
        make_model(spec, seed=0)
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"), [("digits", (1,)), ("har", (1, 1, 8)), ("cifar", (1, 1, 1))]
)
def test_the_smallest_samples_work(name: str, shape: tuple[int, ...]) -> None:
    spec = replace(SPECS[name], shape=shape)
    logits, _ = make_model(spec, seed=0)(samples(spec), torch.arange(8))
    assert logits.shape == (5, spec.classes) and bool(torch.isfinite(logits).all())


def test_an_unknown_model_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="unknown model 'resnet'; expected one of digits, har"):
        make_model(ModelSpec("resnet", (3, 32, 32), 10, 8), seed=0)
