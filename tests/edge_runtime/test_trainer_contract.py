"""What `Trainer` promises: the same tests for both trainers, each with programs of its kernels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from broker_server.roster import KERNELS
from edge_runtime.errors import FlexmoeError, ProgramError
from edge_runtime.executorch_trainer import ExecuTorchTrainer
from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.parts import GATE
from edge_runtime.program_file import unseal
from edge_runtime.trainer import Batch, Rates, Trainer
from edge_runtime.trainers import TRAINERS, make_trainer
from tests.edge_runtime.assigned import (
    DIGITS,
    EXPERTS,
    RATES,
    assert_weights,
    assigned,
    make_weights,
)
from tests.edge_runtime.foreign import other_program
from tests.model_export.eager import random_batch
from tests.native.exported import Export, Pair, make_export


# tests/aarch64/arm_native.py knows this fixture: it leaves out what does not run under qemu.
@pytest.fixture(params=list(TRAINERS))
def kind(request: pytest.FixtureRequest) -> str:
    """A trainer's name."""
    return str(request.param)


@pytest.fixture
def programs(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Gives a model's programs with the trainer's kernels; the batch is `eager.BATCH`'s if None."""
    export = make_export(tmp_path_factory)
    return lambda name="digits", batch=None: export(name, KERNELS[kind], batch)


@pytest.fixture
def digits(programs: Export) -> Pair:
    return programs()


@pytest.fixture
def fresh(kind: str) -> Trainer:
    """A trainer with nothing loaded."""
    return make_trainer(kind, threads=1)


@pytest.fixture
def trainer(kind: str, digits: Pair) -> Trainer:
    """A trainer with programs, experts and weights."""
    return assigned(make_trainer(kind, threads=1), digits)


def test_make_trainer(kind: str) -> None:
    trainer = make_trainer(kind)
    assert isinstance(trainer, {"native": NativeTrainer, "executorch": ExecuTorchTrainer}[kind])
    assert trainer.name == kind


def test_an_unknown_trainer() -> None:
    with pytest.raises(FlexmoeError, match="'tpu'; expected one of native, executorch"):
        make_trainer("tpu")


# --- steps and weights ---------------------------------------------------------------------------


def test_layout(kind: str, trainer: Trainer) -> None:
    layout = trainer.layout
    assert (layout.role, layout.kernels, layout.k, layout.batch) == ("train", KERNELS[kind], 2, 16)
    assert [weight.name for weight in layout.weights] == list(trainer.weights())


def test_a_step_changes_the_weights_and_evaluation_does_not(trainer: Trainer) -> None:
    first = trainer.evaluate(DIGITS)
    assert_weights(trainer, make_weights())
    step = trainer.train_step(DIGITS, RATES)
    assert step.loss == pytest.approx(first.loss, abs=1e-6)
    np.testing.assert_allclose(step.stats, first.stats, rtol=1e-6)
    assert all((w != make_weights()[n]).any() for n, w in trainer.weights().items())
    assert trainer.evaluate(DIGITS).loss < first.loss


def test_results_stay_when_the_next_step_runs(trainer: Trainer) -> None:
    """The runtime uses its memory again; what was handed out must not change."""
    first = trainer.train_step(DIGITS, RATES)
    stats = first.stats.copy()
    trainer.train_step(random_batch("digits", seed=2, real=1), RATES)
    np.testing.assert_array_equal(first.stats, stats)


def test_weights_are_copied_in_and_shown_without_a_copy(trainer: Trainer) -> None:
    given = make_weights()
    trainer.assign(EXPERTS, given)
    shown = trainer.weights()
    for weight in given.values():
        weight += 1.0
    assert_weights(trainer, make_weights())
    trainer.train_step(DIGITS, RATES)
    assert (shown[GATE] != make_weights()[GATE]).any()
    assert np.shares_memory(shown[GATE], trainer.weights()[GATE])


@pytest.mark.filterwarnings("error")
def test_weights_may_be_read_only(trainer: Trainer) -> None:
    """As decoded blobs are."""
    weights = make_weights(seed=2)
    for weight in weights.values():
        weight.flags.writeable = False
    trainer.assign(EXPERTS, weights)
    trainer.train_step(DIGITS, RATES)
    assert all(weight.flags.writeable for weight in trainer.weights().values())


@pytest.mark.parametrize("rates", [RATES, Rates(0.01, optimizer="adamw")], ids=["sgd", "adamw"])
def test_assign_forgets_the_optimizers_state(rates: Rates, trainer: Trainer) -> None:
    losses = []
    for _ in range(2):
        trainer.assign(EXPERTS, make_weights())
        losses.append([trainer.train_step(DIGITS, rates).loss for _ in range(4)])
    assert losses[0] == losses[1]


def test_memory_need_leaves_what_is_loaded(trainer: Trainer, programs: Export) -> None:
    trainer.memory_need(*programs("har"), RATES, 64)
    assert trainer.layout.model == "digits"
    assert_weights(trainer, make_weights())


# --- before load and assign ----------------------------------------------------------------------


def test_before_load(fresh: Trainer) -> None:
    for call in (
        lambda: fresh.layout,
        fresh.weights,
        lambda: fresh.assign(EXPERTS, make_weights()),
        lambda: fresh.train_step(DIGITS, RATES),
        lambda: fresh.evaluate(DIGITS),
    ):
        with pytest.raises(ProgramError, match=r"no program is loaded; call load\(\) first"):
            call()


def test_between_load_and_assign(fresh: Trainer, trainer: Trainer, digits: Pair) -> None:
    """Another program has other weights: those of the last one are not taken over."""
    for loaded in (fresh, trainer):
        loaded.load(*digits)
        for call in (loaded.train_step, lambda batch, _, loaded=loaded: loaded.evaluate(batch)):
            with pytest.raises(ProgramError, match=r"no weights are assigned; call assign\(\)"):
                call(DIGITS, RATES)


# --- experts, weights and batches that do not fit ------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "says"),
    [
        ([], r"takes 2 different experts, got \[\]"),
        ([1], r"takes 2 different experts, got \[1\]"),
        ([1, 2, 3], r"takes 2 different experts, got \[1, 2, 3\]"),
        ([3, 3], r"takes 2 different experts, got \[3, 3\]"),
        ([0, 8], r"experts are 0 to 7, got \[0, 8\]"),
        ([-1, 0], r"experts are 0 to 7, got \[-1, 0\]"),
    ],
)
def test_experts_that_do_not_fit(experts: list[int], says: str, trainer: Trainer) -> None:
    with pytest.raises(ProgramError, match=says):
        trainer.assign(experts, make_weights(seed=2))
    assert_weights(trainer, make_weights())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({GATE: None}, r"weight 'gate.weight' is missing \(model 'digits', k=2\)"),
        ({"experts.2.0.bias": np.zeros(128, np.float32)}, "weight 'experts.2.0.bias' is unknown"),
        (
            {GATE: np.zeros((64, 8), np.float32)},
            r"'gate.weight': expected float32 \[8, 64\], got float32 \[64, 8\]",
        ),
        ({GATE: np.zeros((2, 64), np.float32)}, r"expected float32 \[8, 64\]"),
        ({GATE: np.zeros((8, 64))}, r"got float64 \[8, 64\]"),
        ({GATE: np.full((8, 64), np.nan, np.float32)}, "'gate.weight' holds NaN or infinity"),
        ({"backbone.0.bias": np.full(64, -np.inf, np.float32)}, "'backbone.0.bias' holds NaN"),
    ],
)
def test_weights_that_do_not_fit(
    changes: dict[str, np.ndarray | None], says: str, trainer: Trainer
) -> None:
    weights = {n: w for n, w in {**make_weights(seed=2), **changes}.items() if w is not None}
    with pytest.raises(ProgramError, match=says):
        trainer.assign(EXPERTS, weights)
    assert_weights(trainer, make_weights())


@pytest.mark.parametrize(
    "batch",
    [
        Batch(DIGITS.x[:3], DIGITS.y[:3], DIGITS.sample_weight[:3]),
        Batch(DIGITS.x[:, :63].copy(), DIGITS.y, DIGITS.sample_weight),
        Batch(DIGITS.x.astype(np.float64), DIGITS.y, DIGITS.sample_weight),
        Batch(DIGITS.x, DIGITS.y.astype(np.int32), DIGITS.sample_weight),
        Batch(np.asfortranarray(DIGITS.x), DIGITS.y, DIGITS.sample_weight),
    ],
    ids=["few", "narrow", "float64", "int32", "fortran"],
)
def test_a_batch_of_another_shape_or_type(batch: Batch, kind: str, trainer: Trainer) -> None:
    says = {"native": "[xy]: expected", "executorch": "the program failed: |a multiple of"}[kind]
    for call in (lambda: trainer.train_step(batch, RATES), lambda: trainer.evaluate(batch)):
        with pytest.raises(ProgramError, match=says):
            call()
    assert_weights(trainer, make_weights())


# --- programs that do not fit --------------------------------------------------------------------


def test_wrong_roles(digits: Pair, trainer: Trainer) -> None:
    training, evaluation = digits
    for pair, got in (
        ((evaluation, training), "'evaluate' and 'train'"),
        ((training, training), "'train' and 'train'"),
        ((evaluation, evaluation), "'evaluate' and 'evaluate'"),
    ):
        with pytest.raises(ProgramError, match=f"a training and an evaluation .*, got {got}"):
            trainer.load(*pair)
        with pytest.raises(ProgramError, match=f"a training and an evaluation .*, got {got}"):
            trainer.memory_need(*pair, RATES, batch=16)


def test_programs_of_different_models(digits: Pair, programs: Export, trainer: Trainer) -> None:
    """A pair shares weights and batches: `evaluate` gets batches of the training program's size."""
    for other in (programs("har"), programs(batch=1)):
        with pytest.raises(ProgramError, match="of different models"):
            trainer.load(digits.training, other.evaluation)


def test_a_failed_load_leaves_what_was_there(digits: Pair, trainer: Trainer) -> None:
    with pytest.raises(ProgramError):
        trainer.load(digits.training, b"no program")
    assert trainer.layout.role == "train"
    assert_weights(trainer, make_weights())
    assert np.isfinite(trainer.train_step(DIGITS, RATES).loss)


def assert_refused(layout: str | int | None, says: str, digits: Pair, trainer: Trainer) -> None:
    with pytest.raises(ProgramError, match=says) as caught:
        trainer.load(other_program(layout), digits.evaluation)
    assert "\n" not in str(caught.value)
    assert_weights(trainer, make_weights())


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (7, "layout cannot be read"),
        ("text", "layout cannot be read"),
        ('{"version":99}', "layout has version 99, this runtime reads version 2"),
    ],
)
def test_a_foreign_program(layout: str | int, says: str, digits: Pair, trainer: Trainer) -> None:
    assert_refused(layout, says, digits, trainer)


def test_a_program_without_a_layout(kind: str, digits: Pair, trainer: Trainer) -> None:
    says = {
        "native": "has no method 'flexmoe_layout'",
        "executorch": "not a flexmoe program of this ExecuTorch version",
    }
    assert_refused(None, says[kind], digits, trainer)


def test_a_layout_of_another_version(digits: Pair, trainer: Trainer) -> None:
    """With all that this version has."""
    layout = json.dumps({**json.loads(trainer.layout.to_json()), "version": 99})
    assert_refused(layout, "layout has version 99, this runtime reads version 2", digits, trainer)


def test_files_without_a_seal(digits: Pair, trainer: Trainer) -> None:
    for file, says in (
        (b"", "not a flexmoe program"),
        (digits.training[:-1], "has no seal"),
        (bytes(unseal(digits.training)), "has no seal"),
    ):
        for pair in ((file, digits.evaluation), (digits.training, file)):
            with pytest.raises(ProgramError, match=says):
                trainer.load(*pair)
            with pytest.raises(ProgramError, match=says):
                trainer.memory_need(*pair, RATES, 16)
    assert_weights(trainer, make_weights())
