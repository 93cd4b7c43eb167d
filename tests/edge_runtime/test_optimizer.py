"""SGD in place over numpy arrays, against torch.optim.SGD."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.optimizer import Sgd
from edge_runtime.trainer import Rates

SHAPES = [(3, 4), (5,), ()]
RATES = st.builds(
    Rates,
    learning_rate=st.floats(0, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    weight_decay=st.sampled_from([0.0, 1e-4, 0.1]),
)


def draw_arrays(rng: np.random.Generator) -> list[np.ndarray]:
    return [np.asarray(rng.normal(size=shape), np.float32) for shape in SHAPES]


@given(steps=st.lists(RATES, min_size=1, max_size=8), seed=st.integers(0, 2**32 - 1))
def test_steps_are_those_of_torch(steps: list[Rates], seed: int) -> None:
    """The server may change the rates from round to round, so each step has its own here."""
    rng = np.random.default_rng(seed)
    weights = draw_arrays(rng)
    parameters = [torch.nn.Parameter(torch.tensor(weight)) for weight in weights]
    ours, theirs = Sgd(weights), torch.optim.SGD(parameters, lr=1.0)
    for rates in steps:
        gradients = draw_arrays(rng)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        theirs.param_groups[0].update(
            lr=rates.learning_rate, momentum=rates.momentum, weight_decay=rates.weight_decay
        )
        theirs.step()
        ours.step(gradients, rates)
        for weight, parameter in zip(weights, parameters, strict=True):
            np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=1e-5, atol=1e-5)


@given(rates=RATES, seed=st.integers(0, 1000))
def test_gradients_are_left_alone(rates: Rates, seed: int) -> None:
    """They may be views into the runtime's memory."""
    rng = np.random.default_rng(seed)
    weights, gradients = draw_arrays(rng), draw_arrays(rng)
    copies = [gradient.copy() for gradient in gradients]
    for gradient in gradients:
        gradient.flags.writeable = False
    sgd = Sgd(weights)
    sgd.step(gradients, rates)
    sgd.step(gradients, rates)
    for gradient, copy in zip(gradients, copies, strict=True):
        np.testing.assert_array_equal(gradient, copy)


def test_the_very_arrays_change() -> None:
    weight = np.ones(3, np.float32)
    view = weight.view()
    Sgd([weight]).step([np.ones(3, np.float32)], Rates(learning_rate=0.25))
    np.testing.assert_array_equal(view, np.full(3, 0.75, np.float32))
