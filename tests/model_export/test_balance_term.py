"""Programs with a balance term: what it changes, what it leaves, and what it is for."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from edge_runtime.errors import ProgramError
from edge_runtime.executorch_trainer import ExecuTorchTrainer
from edge_runtime.layout import KERNEL_SETS, ROLES
from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.parts import GATE, Tensors
from edge_runtime.program_file import seal, unseal
from edge_runtime.trainer import Batch, Rates, Trainer
from model_export.models import ModelSpec
from model_export.program import export_program
from tests.model_export.eager import SPECS, EagerSubset, K, random_batch, subset_weights
from tests.native.exported import Export, make_export

EXPERTS = [2, 5]
# One step of plain descent at rate 1 moves each weight by its gradient.
UNIT = Rates(learning_rate=1.0)
BALANCE = 0.5


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return make_export(tmp_path_factory)


def make_trainer(kernels: str) -> Trainer:
    return NativeTrainer(threads=1) if kernels == "native" else ExecuTorchTrainer()


def step(
    export: Export, name: str, kernels: str, weights: Tensors, batch: Batch, balance: float
) -> tuple[float, np.ndarray, Tensors]:
    """Loss, stats and gradients of one step."""
    trainer = make_trainer(kernels)
    trainer.load(*export(name, kernels, balance=balance))
    trainer.assign(EXPERTS, weights)
    result = trainer.train_step(batch, UNIT)
    after = trainer.weights()
    return result.loss, result.stats, {n: weights[n] - after[n] for n in weights}


@pytest.mark.parametrize("real", [None, 3])
@pytest.mark.parametrize("kernels", KERNEL_SETS)
@pytest.mark.parametrize("name", SPECS)
def test_only_gradients_change_and_they_are_those_of_eager_torch(
    name: str, kernels: str, real: int | None, export: Export
) -> None:
    batch = random_batch(name, seed=1, real=real)
    weights = subset_weights(SPECS[name], EXPERTS, seed=2)
    expected = EagerSubset(SPECS[name], EXPERTS, weights).step(batch, BALANCE)[2]
    loss, stats, gradients = step(export, name, kernels, weights, batch, BALANCE)
    plain = step(export, name, kernels, weights, batch, 0.0)
    assert loss == pytest.approx(plain[0], rel=1e-6)
    np.testing.assert_allclose(stats, plain[1], rtol=1e-6)
    for gradient_name, value in expected.items():
        np.testing.assert_allclose(gradients[gradient_name], value, atol=1e-5)
    # Experts do not see the term; the gate does.
    for other, value in plain[2].items():
        if other.startswith("experts."):
            np.testing.assert_allclose(gradients[other], value, atol=1e-6, err_msg=other)
    assert np.abs(gradients[GATE] - plain[2][GATE]).max() > 1e-3


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_a_batch_of_padding_has_no_gradient(kernels: str, export: Export) -> None:
    batch = random_batch("digits", seed=1, real=0)
    weights = subset_weights(SPECS["digits"], EXPERTS, seed=2)
    loss, stats, gradients = step(export, "digits", kernels, weights, batch, BALANCE)
    assert loss == 0 and not stats.any() and not any(g.any() for g in gradients.values())


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_where_nothing_is_balanced_programs_are_the_same_bytes(kernels: str) -> None:
    for k, role, same in ((2, "evaluate", True), (1, "train", True), (2, "train", False)):
        with_term, without = (
            export_program(SPECS["digits"], k, 4, role, kernels, balance=balance)
            for balance in (BALANCE, 0.0)
        )
        assert with_term.layout == without.layout
        assert (with_term.data == without.data) == same


@pytest.mark.parametrize("balance", [-0.1, float("nan"), float("inf"), 1e39])
def test_a_coefficient_that_is_none_is_one_clear_line(balance: float) -> None:
    with pytest.raises(ProgramError, match=r"balance [-+a-z0-9.]+; expected a number") as caught:
        export_program(SPECS["digits"], 2, 4, "train", "native", balance=balance)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("balance", [-0.1, float("nan"), float("inf"), float("-inf"), 1e39])
def test_a_forged_coefficient_fails_the_step_and_leaves_the_weights(
    balance: float, export: Export
) -> None:
    pair = export("digits", balance=BALANCE)
    data, known = bytes(unseal(pair.training)), struct.pack("<d", BALANCE)
    assert data.count(known) == 1
    trainer = NativeTrainer(threads=1)
    trainer.load(seal(data.replace(known, struct.pack("<d", balance))), pair.evaluation)
    weights = subset_weights(SPECS["digits"], EXPERTS, seed=2)
    trainer.assign(EXPERTS, weights)
    with pytest.raises(
        ProgramError, match=r"balanced_mixture_cross_entropy, argument 6: .*(finite|range)"
    ) as caught:
        trainer.train_step(random_batch("digits", seed=1), UNIT)
    assert "\n" not in str(caught.value)
    for name, weight in trainer.weights().items():
        np.testing.assert_array_equal(weight, weights[name])


# --- what it is for ------------------------------------------------------------------------------

SMALL = ModelSpec("digits", (8,), classes=4, experts=8)
SAMPLES = 32


def skewed() -> tuple[Tensors, Batch]:
    """A gate that sends every sample to its first expert, and four clusters to learn."""
    weights = subset_weights(SMALL, EXPERTS, seed=1)
    weights[GATE][:] = 0.0
    weights[GATE][EXPERTS[0]] = 0.2  # features are at least 0: a ReLU is before the gate
    rng = np.random.default_rng(3)
    y = rng.integers(4, size=SAMPLES)
    centres = rng.normal(size=(4, 8))
    x = (centres[y] + 0.3 * rng.normal(size=(SAMPLES, 8))).astype(np.float32)
    return weights, Batch(x, y, np.full(SAMPLES, 1 / SAMPLES, np.float32))


def routed_after_training(kernels: str, balance: float) -> list[float]:
    """Samples of each of the two experts after 40 steps, which must have learned the clusters."""
    weights, batch = skewed()
    trainer = make_trainer(kernels)
    trainer.load(
        *(export_program(SMALL, K, SAMPLES, role, kernels, balance=balance).data for role in ROLES)
    )
    trainer.assign(EXPERTS, weights)
    assert trainer.evaluate(batch).stats[:, 0].tolist() == [SAMPLES, 0]
    losses = [trainer.train_step(batch, Rates(0.1)).loss for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]
    return trainer.evaluate(batch).stats[:, 0].tolist()


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_training_comes_to_use_all_experts(kernels: str) -> None:
    assert routed_after_training(kernels, 0.0) == [SAMPLES, 0]
    assert min(routed_after_training(kernels, 1.0)) >= SAMPLES / 4
