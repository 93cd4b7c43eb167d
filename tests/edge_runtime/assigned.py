"""Trainers that are ready for a step, and their weights; the trainers' tests share them."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from edge_runtime.parts import Tensors
from edge_runtime.trainer import Rates, Trainer
from tests.model_export.eager import SPECS, random_batch, subset_weights

EXPERTS = [1, 4]
RATES = Rates(learning_rate=0.1, momentum=0.9)
DIGITS = random_batch("digits", seed=1)

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def assigned(
    trainer: AnyTrainer, pair: tuple[bytes, bytes], name: str = "digits", seed: int = 1
) -> AnyTrainer:
    """`trainer` with the model `name`'s programs, `EXPERTS` and weights drawn from `seed`."""
    trainer.load(*pair)
    trainer.assign(EXPERTS, make_weights(seed, name))
    return trainer


def make_weights(seed: int = 1, name: str = "digits") -> Tensors:
    """New arrays each time: those that `assigned` gave."""
    return subset_weights(SPECS[name], EXPERTS, seed)


def assert_weights(trainer: Trainer, expected: Tensors) -> None:
    """Bit by bit, and in order."""
    assert list(trainer.weights()) == list(expected)
    for name, weight in trainer.weights().items():
        np.testing.assert_array_equal(weight, expected[name], err_msg=name)
