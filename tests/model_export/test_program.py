"""The exported programs, run by the stock runtime, against eager PyTorch with autograd."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.errors import ProgramError
from edge_runtime.executorch_trainer import ExecuTorchTrainer
from edge_runtime.layout import KERNEL_SETS, ROLES, ProgramLayout
from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.parts import Tensors
from edge_runtime.program_file import unseal
from edge_runtime.trainer import Batch, Rates, StepResult
from model_export.program import Program, export_program, make_layout, training_memory_bytes
from tests.model_export.eager import (
    BATCH,
    SPECS,
    EagerSubset,
    K,
    random_batch,
    subset_weights,
)

Exported = Callable[..., Program]
TrainerOf = Callable[[str], ExecuTorchTrainer]

MODELS = list(SPECS)
EXPERTS = [2, 5]
# One step of plain descent at rate 1 moves each weight by its gradient.
UNIT = Rates(learning_rate=1.0)
ALIGNMENT = 4096  # how much more a device's buffers may be than what they hold, in bytes
REPOSITORY = Path(__file__).parents[2]


def step_gradients(
    trainer: ExecuTorchTrainer, experts: Sequence[int], weights: Tensors, batch: Batch
) -> tuple[StepResult, Tensors]:
    """What one step says, and the gradients that it used."""
    trainer.assign(list(experts), weights)
    result = trainer.train_step(batch, UNIT)
    return result, {name: weights[name] - after for name, after in trainer.weights().items()}


def assert_close(got: Tensors, expected: Tensors, tolerance: float) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance, err_msg=name)


def assert_stats(got: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    """Routed samples and hits are counts and must agree; the summed loss is a float."""
    np.testing.assert_array_equal(got[:, [0, 2]], expected[:, [0, 2]])
    np.testing.assert_allclose(got[:, 1], expected[:, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("real", [None, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_that_of_eager_torch(
    name: str, real: int | None, trainer_of: TrainerOf
) -> None:
    batch = random_batch(name, seed=1, real=real)
    weights = subset_weights(SPECS[name], EXPERTS, seed=2)
    loss, stats, gradients = EagerSubset(SPECS[name], EXPERTS, weights).step(batch)
    result, got = step_gradients(trainer_of(name), EXPERTS, weights, batch)
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_stats(result.stats, stats)
    assert_close(got, gradients, 1e-5)
    assert all(np.abs(value).max() > 1e-4 for value in gradients.values()), "nothing is tested"
    assert stats[:, 0].sum() == (BATCH[name] if real is None else real)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_that_of_eager_torch(name: str, trainer_of: TrainerOf) -> None:
    batch = random_batch(name, seed=3, real=3)
    weights = subset_weights(SPECS[name], EXPERTS, seed=4)
    loss, stats, _ = EagerSubset(SPECS[name], EXPERTS, weights).step(batch)
    trainer = trainer_of(name)
    trainer.assign(EXPERTS, weights)
    result = trainer.evaluate(batch)
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_stats(result.stats, stats)
    assert_close(trainer.weights(), weights, 0.0)


@pytest.mark.parametrize("name", MODELS)
def test_fifty_steps_stay_with_torch(name: str, trainer_of: TrainerOf) -> None:
    rates = Rates(learning_rate=0.02, momentum=0.9, weight_decay=1e-3)
    batch = random_batch(name, seed=5)
    weights = subset_weights(SPECS[name], EXPERTS, seed=6)
    eager = EagerSubset(SPECS[name], EXPERTS, weights)
    optimizer = torch.optim.SGD(
        eager.model.parameters(),
        lr=rates.learning_rate,
        momentum=rates.momentum,
        weight_decay=rates.weight_decay,
    )
    trainer = trainer_of(name)
    trainer.assign(EXPERTS, weights)
    losses = []
    for _ in range(50):
        losses.append(eager.step(batch)[0])
        optimizer.step()
        assert trainer.train_step(batch, rates).loss == pytest.approx(losses[-1], abs=1e-4)
    after = {n: value.detach().numpy() for n, value in eager.model.named_parameters()}
    assert_close(trainer.weights(), after, 1e-4)
    assert losses[-1] < 0.3 * losses[0], "the steps hardly moved the model"


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name: str, trainer_of: TrainerOf) -> None:
    batch = random_batch(name, seed=7, real=2)
    x, y = batch.x.copy(), batch.y.copy()
    x[2:], y[2:] = 100.0 * np.flip(x[2:]), (y[2:] + 1) % SPECS[name].classes
    weights = subset_weights(SPECS[name], EXPERTS, seed=8)
    trainer = trainer_of(name)
    result, gradients = step_gradients(trainer, EXPERTS, weights, batch)
    other, same = step_gradients(trainer, EXPERTS, weights, replace(batch, x=x, y=y))
    assert other.loss == result.loss
    np.testing.assert_array_equal(other.stats, result.stats)
    assert_close(same, gradients, 1e-7)


@given(
    experts=st.lists(st.integers(0, 7), min_size=K, max_size=K, unique=True),
    seed=st.integers(0, 1000),
)
def test_one_program_serves_any_subset(
    experts: list[int], seed: int, trainer_of: TrainerOf
) -> None:
    batch = random_batch("digits", seed)
    weights = subset_weights(SPECS["digits"], experts, seed)
    loss, stats, gradients = EagerSubset(SPECS["digits"], experts, weights).step(batch)
    result, got = step_gradients(trainer_of("digits"), experts, weights, batch)
    assert result.loss == pytest.approx(loss, abs=1e-5)
    assert_stats(result.stats, stats)
    assert_close(got, gradients, 1e-5)
    others = [row for row in range(8) if row not in experts]
    assert not got["gate.weight"][others].any()


def test_passes_change_no_value(exported: Exported, trainer_of: TrainerOf) -> None:
    plain = export_program(SPECS["digits"], K, BATCH["digits"], "train", "stock", optimize=False)
    fast = exported("digits", "train")
    assert plain.layout == fast.layout and plain.data != fast.data
    assert plain.arena_bytes > fast.arena_bytes
    batch = random_batch("digits", seed=9)
    weights = subset_weights(SPECS["digits"], EXPERTS, seed=10)
    result, gradients = step_gradients(trainer_of("digits"), EXPERTS, weights, batch)
    trainer = ExecuTorchTrainer()
    trainer.load(plain.data, exported("digits", "evaluate").data)
    other, same = step_gradients(trainer, EXPERTS, weights, batch)
    assert other.loss == pytest.approx(result.loss, abs=1e-6)
    np.testing.assert_allclose(other.stats, result.stats, rtol=1e-6, atol=1e-6)
    assert_close(same, gradients, 1e-6)


@pytest.mark.parametrize("kernels", KERNEL_SETS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", MODELS)
def test_a_program_holds_its_layout_and_no_weights(
    name: str, role: str, kernels: str, exported: Exported
) -> None:
    program = exported(name, role, kernels)
    assert len(program.data) < 64 * 1024 < program.layout.weights_bytes
    assert program.layout == make_layout(SPECS[name], K, BATCH[name], role, kernels)
    text = program.layout.to_json()
    assert text.encode() in bytes(unseal(program.data))
    assert ProgramLayout.from_json(text) == program.layout
    weights = subset_weights(SPECS[name], EXPERTS, seed=0)
    assert [(w.name, w.shape) for w in program.layout.weights] == [
        (n, value.shape) for n, value in weights.items()
    ]
    assert program.layout.weights_bytes == sum(value.nbytes for value in weights.values())


@pytest.mark.parametrize("name", MODELS)
def test_memory_of_training(name: str, exported: Exported) -> None:
    train, evaluate = exported(name, "train"), exported(name, "evaluate")
    # The arena holds at least the outputs: one gradient per weight.
    assert train.arena_bytes >= train.layout.weights_bytes > 0
    assert 0 < evaluate.arena_bytes < train.arena_bytes
    native = exported(name, "train", "native"), exported(name, "evaluate", "native")
    assert 0 < native[1].arena_bytes < native[0].arena_bytes
    assert native[0].arena_bytes < train.arena_bytes - train.layout.weights_bytes


@pytest.mark.parametrize("kernels", KERNEL_SETS)
@pytest.mark.parametrize("micro", [False, True])
@pytest.mark.parametrize(
    "rates", [Rates(0.1), Rates(0.1, momentum=0.9), Rates(0.1, optimizer="adamw")]
)
def test_the_server_counts_the_memory_that_a_device_counts(
    rates: Rates, micro: bool, kernels: str, exported: Exported
) -> None:
    pair = exported("digits", "train", kernels), exported("digits", "evaluate", kernels)
    trainer = NativeTrainer(1) if kernels == "native" else ExecuTorchTrainer()
    batch = BATCH["digits"] * (2 if micro else 1)
    need = trainer.memory_need(pair[0].data, pair[1].data, rates, batch)
    moments = 2 if rates.optimizer == "adamw" else int(rates.momentum > 0)
    counted = training_memory_bytes(*pair, moments=moments, micro_batches=micro)
    # As received, their change, and the change as encoded: the trainer knows nothing of these.
    copies = 3 * pair[0].layout.weights_bytes + sum(len(program.data) for program in pair)
    trainers = need.arena_bytes + need.weights_bytes + need.gradients_bytes + need.optimizer_bytes
    assert abs(counted - trainers - copies) < ALIGNMENT


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_exports_repeat_to_the_byte(kernels: str, exported: Exported) -> None:
    """In another process with another hash seed, too: a digest names it on every device."""
    script = (
        "import hashlib; from model_export.program import export_program;"
        "from tests.model_export.eager import BATCH, SPECS, K;"
        f"program = export_program(SPECS['digits'], K, BATCH['digits'], 'train', '{kernels}');"
        "print(hashlib.sha256(program.data).hexdigest(), program.arena_bytes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    program = exported("digits", "train", kernels)
    expected = f"{hashlib.sha256(program.data).hexdigest()} {program.arena_bytes}"
    assert done.stdout.split("\n") == [expected, ""]
    assert done.stderr == ""


def test_export_leaves_torchs_random_numbers_alone_() -> None:
    before = torch.get_rng_state()
    export_program(SPECS["digits"], 1, 1, "evaluate", "native")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("k", "batch", "role"), [(0, 8, "train"), (9, 8, "train"), (2, 0, "train"), (2, 8, "predict")]
)
def test_what_cannot_be_exported_is_one_clear_line(k: int, batch: int, role: str) -> None:
    with pytest.raises(
        ProgramError, match=rf"role '{role}', k={k} of 8 .* batch {batch}: "
    ) as caught:
        make_layout(SPECS["digits"], k, batch, role, "native")
    assert "\n" not in str(caught.value)


def test_unknown_kernels_are_one_clear_line() -> None:
    with pytest.raises(
        ProgramError, match=r"kernels 'cuda'; expected one of \('native', 'stock'\)"
    ):
        make_layout(SPECS["digits"], 2, 8, "train", "cuda")
