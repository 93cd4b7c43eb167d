"""The native trainer on aarch64, under qemu, learns what it learns on this machine."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.parts import Tensors
from edge_runtime.trainer import Batch, Rates, StepResult
from tests.aarch64.remote import Remote, arm_python
from tests.model_export.eager import SPECS, random_batch, subset_weights
from tests.native.exported import Export, make_export

EXPERTS, TOLERANCE = [1, 4], 1e-5
RATES = {
    "sgd": Rates(learning_rate=0.05, momentum=0.9, weight_decay=1e-3, clip_norm=1.0),
    "adamw": Rates(learning_rate=1e-3, weight_decay=1e-2, optimizer="adamw"),
}
MUTANTS = 500
LOAD_MUTANTS = """
import runpy, sys
sys.path.append(sys.argv.pop(1))  # the last: edge_runtime is the wheel's
runpy.run_module("tests.native.mutants", run_name="__main__")
"""


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return make_export(tmp_path_factory)


def double(model: str, seed: int) -> Batch:
    """Two of the program's batches in one: two micro-batches."""
    one, two = (random_batch(model, 2 * seed + i) for i in range(2))
    return Batch(
        np.concatenate([one.x, two.x]),
        np.concatenate([one.y, two.y]),
        np.concatenate([one.sample_weight, two.sample_weight]) / 2,
    )


def assert_same(there: StepResult, here: StepResult) -> None:
    assert there.loss == pytest.approx(here.loss, rel=TOLERANCE)
    np.testing.assert_allclose(there.stats, here.stats, rtol=TOLERANCE)


def assert_near(there: Tensors, here: Tensors) -> None:
    """The weights as a whole: a ReLU that gets 0, but for rounding, may open on one side only.

    Among the cifar model's millions of ReLUs that happens every few steps, also between two
    instruction sets of one machine, and the few weights behind that one then differ by more.
    """
    assert there.keys() == here.keys()
    error = sum(float(np.square(there[name] - here[name]).sum()) for name in here)
    size = sum(float(np.square(here[name]).sum()) for name in here)
    assert error <= TOLERANCE**2 * size


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize(
    ("model", "kernels", "threads", "steps"),
    [
        ("digits", "native", 1, 20),
        ("har", "native", 2, 20),
        ("cifar", "native", 1, 6),
        ("digits", "stock", 1, 5),
    ],
)
def test_training_equals_this_machine(
    model: str,
    kernels: str,
    threads: int,
    steps: int,
    optimizer: str,
    arm: Remote,
    export: Export,
) -> None:
    weights, rates = subset_weights(SPECS[model], EXPERTS, seed=3), RATES[optimizer]
    there = arm.module("edge_runtime.native_trainer").NativeTrainer(threads)
    here = NativeTrainer(threads=1)
    for trainer in (here, there):
        trainer.load(*export(model, kernels))
        trainer.assign(EXPERTS, weights)
    for step in range(steps):
        batch = double(model, step)
        assert_same(there.train_step(batch, rates), here.train_step(batch, rates))
        assert_near(there.weights(), here.weights())
    test = random_batch(model, seed=100)
    assert_same(there.evaluate(test), here.evaluate(test))
    assert all((weight != weights[name]).any() for name, weight in here.weights().items())


def test_needs_the_memory_that_it_needs_here(arm: Remote, export: Export) -> None:
    pair = export("har")
    there = arm.module("edge_runtime.native_trainer").NativeTrainer(1)
    for rates in RATES.values():
        need = NativeTrainer(1).memory_need(*pair, rates, batch=16)
        other = there.memory_need(*pair, rates, batch=16)
        # The scratch is that of another instruction set.
        assert replace(other, scratch_bytes=need.scratch_bytes) == need
        assert 0 < other.scratch_bytes < 2 * need.scratch_bytes


@pytest.mark.parametrize("how", ["raw", "resealed"])
def test_mutated_programs_do_not_crash_it(how: str, export: Export, tmp_path: Path) -> None:
    files = [tmp_path / "training", tmp_path / "evaluation"]
    for file, data in zip(files, export("har"), strict=True):
        file.write_bytes(data)
    command = [arm_python(), "-c", LOAD_MUTANTS, Path(__file__).parents[2], *files]
    done = subprocess.run(
        [*map(str, command), "0", str(MUTANTS), how], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout[-200:], done.stderr[-2000:])
    outcomes: dict[str, int] = ast.literal_eval(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == MUTANTS and outcomes["refused"] > MUTANTS / 2
