"""Resident memory stays flat over steps and over assignments."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.trainer import Rates
from tests.model_export.eager import SPECS, random_batch, subset_weights
from tests.native.exported import make_export

TOLERANCE_BYTES = 256 * 1024
SPEC, BATCH = SPECS["digits"], random_batch("digits", seed=1)
ASSIGNMENTS = [(experts, subset_weights(SPEC, experts, 1)) for experts in ([0, 1], [5, 2])]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> NativeTrainer:
    trainer = NativeTrainer(threads=1)
    trainer.load(*make_export(tmp_path_factory)("digits"))
    trainer.assign(*ASSIGNMENTS[0])
    return trainer


def assert_flat(times: int, call: Callable[[int], object]) -> None:
    """A leak of 100 bytes a call would show after 5,000 calls."""
    for number in range(times // 5):
        call(number)
    process = psutil.Process()
    before = process.memory_info().rss
    for number in range(times):
        call(number)
    assert process.memory_info().rss - before < TOLERANCE_BYTES


def test_steps(trainer: NativeTrainer) -> None:
    rates = Rates(1e-3, momentum=0.9)
    assert_flat(5000, lambda _: trainer.train_step(BATCH, rates))


def test_evaluation(trainer: NativeTrainer) -> None:
    assert_flat(5000, lambda _: trainer.evaluate(BATCH))


def test_assignments(trainer: NativeTrainer) -> None:
    rates = Rates(1e-3, optimizer="adamw")

    def switch(number: int) -> None:
        trainer.assign(*ASSIGNMENTS[number % 2])
        trainer.train_step(BATCH, rates)
        trainer.weights()

    assert_flat(200, switch)


def test_loads(tmp_path_factory: pytest.TempPathFactory) -> None:
    pair = make_export(tmp_path_factory)("digits")

    def load(_: int) -> None:
        trainer = NativeTrainer(threads=1)
        trainer.load(*pair)
        trainer.assign(*ASSIGNMENTS[0])
        trainer.train_step(BATCH, Rates(0.1))

    assert_flat(200, load)
