"""SGD, AdamW and clipping in place over numpy arrays, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.optimizer import Optimizer, clip_factor
from edge_runtime.trainer import Rates

SHAPES = [(3, 4), (5,), ()]
CLIP = st.sampled_from([0.0, 0.01, 1.0, 100.0])
SGD = st.builds(
    Rates,
    learning_rate=st.floats(0, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    weight_decay=st.sampled_from([0.0, 1e-4, 0.1]),
    clip_norm=CLIP,
)
ADAMW = st.builds(
    Rates,
    optimizer=st.just("adamw"),
    learning_rate=st.floats(0, 0.1),
    weight_decay=st.sampled_from([0.0, 1e-2, 0.3]),
    beta1=st.sampled_from([0.0, 0.5, 0.9]),
    beta2=st.sampled_from([0.0, 0.9, 0.999]),
    epsilon=st.sampled_from([1e-8, 1e-3]),
    clip_norm=CLIP,
)
SEEDS = st.integers(0, 2**32 - 1)


def draw_arrays(rng: np.random.Generator) -> list[np.ndarray]:
    return [np.asarray(rng.normal(size=shape), np.float32) for shape in SHAPES]


def torch_optimizer(parameters: list[torch.nn.Parameter], name: str) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters)
    return torch.optim.SGD(parameters, lr=1.0)


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    group = optimizer.param_groups[0]
    group.update(lr=rates.learning_rate, weight_decay=rates.weight_decay)
    if rates.optimizer == "adamw":
        group.update(betas=(rates.beta1, rates.beta2), eps=rates.epsilon)
    else:
        group.update(momentum=rates.momentum)


@given(
    steps=st.one_of(st.lists(SGD, min_size=1, max_size=8), st.lists(ADAMW, min_size=1, max_size=8)),
    seed=SEEDS,
)
def test_steps_are_those_of_torch(steps: list[Rates], seed: int) -> None:
    """The server may change the rates from round to round, so each step has its own here."""
    rng = np.random.default_rng(seed)
    weights = draw_arrays(rng)
    parameters = [torch.nn.Parameter(torch.tensor(weight)) for weight in weights]
    ours, theirs = Optimizer(weights), torch_optimizer(parameters, steps[0].optimizer)
    for rates in steps:
        gradients = draw_arrays(rng)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        if rates.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, rates.clip_norm)
        set_rates(theirs, rates)
        theirs.step()
        ours.step(gradients, rates)
        for weight, parameter in zip(weights, parameters, strict=True):
            np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=1e-5, atol=1e-5)


@given(scale=st.floats(1e-6, 1e6), clip=st.floats(1e-3, 1e3), seed=SEEDS)
@example(scale=0.0, clip=1.0, seed=0)
def test_clipping_is_that_of_torch(scale: float, clip: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gradients = [np.asarray(g * scale, np.float32) for g in draw_arrays(rng)]
    parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    factor = clip_factor(gradients, clip)
    assert 0 < factor <= 1
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(gradient * factor, parameter.grad.numpy(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_clipping_does_not_hide_what_is_not_finite(bad: float) -> None:
    """Divergence is found in the weights: it must still be there."""
    weight, gradient = np.ones(2, np.float32), np.array([1, bad], np.float32)
    Optimizer([weight]).step([gradient], Rates(learning_rate=0.1, clip_norm=1.0))
    assert not np.isfinite(weight).all()


@given(rates=st.one_of(SGD, ADAMW), seed=st.integers(0, 1000))
def test_gradients_are_left_alone(rates: Rates, seed: int) -> None:
    """They may be views into the runtime's memory."""
    rng = np.random.default_rng(seed)
    weights, gradients = draw_arrays(rng), draw_arrays(rng)
    copies = [gradient.copy() for gradient in gradients]
    for gradient in gradients:
        gradient.flags.writeable = False
    optimizer = Optimizer(weights)
    optimizer.step(gradients, rates)
    optimizer.step(gradients, rates)
    for gradient, copy in zip(gradients, copies, strict=True):
        np.testing.assert_array_equal(gradient, copy)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_very_arrays_change(name: str) -> None:
    weight = np.ones(3, np.float32)
    view = weight.view()
    rates = Rates(learning_rate=0.25, optimizer=name)  # type: ignore[arg-type]
    Optimizer([weight]).step([np.ones(3, np.float32)], rates)
    np.testing.assert_allclose(view, np.full(3, 0.75, np.float32))
