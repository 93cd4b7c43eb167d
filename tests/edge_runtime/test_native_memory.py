"""The native trainer's memory: what it says it needs is what it holds, and nothing twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import ProgramError
from edge_runtime.native import _native
from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.trainer import Batch, Rates
from tests.edge_runtime.assigned import DIGITS, RATES, assigned, make_weights
from tests.model_export.eager import BATCH, SPECS, EagerSubset, random_batch
from tests.native.exported import Export, Pair, make_export


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return make_export(tmp_path_factory)


@pytest.fixture(scope="session")
def digits(export: Export) -> Pair:
    return export("digits")


@pytest.fixture
def trainer(digits: Pair) -> NativeTrainer:
    """A trainer with programs, experts and weights."""
    return assigned(NativeTrainer(threads=1), digits)


NEEDS = {
    "sgd": (Rates(0.1), 1),
    "momentum": (RATES, 1),
    "adamw": (Rates(0.1, optimizer="adamw"), 3),
}


@pytest.mark.parametrize("kernels", ["native", "stock"])
@pytest.mark.parametrize("how", NEEDS)
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("name", ["digits", "har", "cifar"])
def test_memory_need_is_what_is_held(
    name: str, threads: int, how: str, kernels: str, export: Export
) -> None:
    rates, times = NEEDS[how]
    pair, batch = export(name, kernels), random_batch(name, seed=1)
    trainer = NativeTrainer(threads)
    need = trainer.memory_need(*pair, rates, times * BATCH[name])
    assigned(trainer, pair, name)
    arrays = (np.concatenate([a] * times) for a in (batch.x, batch.y, batch.sample_weight))
    whole = Batch(*arrays)
    for _ in range(2):
        trainer.train_step(whole, rates)
        trainer.evaluate(batch)
    held = trainer.memory()
    assert sum(held.values()) <= need.total_bytes < 1.01 * sum(held.values())
    assert need.arena_bytes == held["arena"]
    assert need.weights_bytes == held["weights"] >= trainer.layout.weights_bytes
    assert need.gradients_bytes == held["gradients"]
    assert need.optimizer_bytes == held["optimizer"]
    assert need.scratch_bytes == held["scratch"] > 0
    assert need.programs_bytes == held["programs"] > sum(len(file) for file in pair)


def test_what_an_optimizer_left_is_not_held(trainer: NativeTrainer) -> None:
    held = []
    for rates in (Rates(0.1), Rates(0.1, optimizer="adamw"), RATES, Rates(0.1)):
        trainer.train_step(DIGITS, rates)
        held.append(trainer.memory()["optimizer"])
    size = trainer.memory()["weights"]
    assert held == [0, 2 * size, size, 0]


def test_shown_weights_outlive_the_trainer(digits: Pair) -> None:
    shown = assigned(NativeTrainer(threads=1), digits).weights()
    for name, weight in make_weights().items():
        np.testing.assert_array_equal(shown[name], weight)


def test_another_assignment_copies_weights_and_nothing_else(trainer: NativeTrainer) -> None:
    trainer.train_step(DIGITS, RATES)
    trainer.evaluate(DIGITS)
    shown, memory = trainer.weights(), trainer.memory()
    trainer.assign([7, 0], make_weights(seed=2))
    for name, weight in trainer.weights().items():
        assert np.shares_memory(weight, shown[name])
    other = EagerSubset(SPECS["digits"], [7, 0], make_weights(seed=2))
    assert trainer.evaluate(DIGITS).loss == pytest.approx(other.step(DIGITS)[0], abs=1e-5)
    trainer.train_step(DIGITS, RATES)
    assert trainer.memory() == memory


def test_a_load_drops_what_was_loaded_first(
    trainer: NativeTrainer, digits: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device has no memory for both."""
    make, made = _native.Session, []

    def watched(*arguments: Any) -> _native.Session:
        with pytest.raises(ProgramError, match="no program is loaded"):
            trainer.weights()
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(_native, "Session", watched)
    trainer.load(*digits)
    assert len(made) == 1
