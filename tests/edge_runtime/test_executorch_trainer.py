"""The stock runtime as a `Trainer`: the contract, and what it says to programs that do not fit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.exir import to_edge

from edge_runtime import native
from edge_runtime.errors import FlexmoeError, ProgramError
from edge_runtime.executorch_trainer import ExecuTorchTrainer
from edge_runtime.layout import LAYOUT_METHOD
from edge_runtime.parts import GATE, Tensors
from edge_runtime.program_file import seal
from edge_runtime.trainer import Batch, Rates, Trainer
from edge_runtime.trainers import make_trainer
from tests.edge_runtime.conftest import Programs
from tests.model_export.eager import SPECS, random_batch, subset_weights

SPEC, EXPERTS = SPECS["digits"], [1, 4]
RATES = Rates(learning_rate=0.1, momentum=0.9)
BATCH = random_batch("digits", seed=1)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def trainer(digits: Programs) -> ExecuTorchTrainer:
    """A trainer with programs, experts and weights."""
    trainer = ExecuTorchTrainer()
    trainer.load(*digits)
    trainer.assign(EXPERTS, make_weights())
    return trainer


def make_weights(seed: int = 1) -> Tensors:
    return subset_weights(SPEC, EXPERTS, seed)


def assert_weights(trainer: ExecuTorchTrainer, expected: Tensors) -> None:
    assert list(trainer.weights()) == list(expected)
    for name, weight in trainer.weights().items():
        np.testing.assert_array_equal(weight, expected[name], err_msg=name)


# --- the contract --------------------------------------------------------------------------------


def test_make_trainer() -> None:
    trainer: Trainer = make_trainer("executorch")
    assert isinstance(trainer, ExecuTorchTrainer) and trainer.name == "executorch"
    with pytest.raises(FlexmoeError, match="'tpu'; expected one of native, executorch"):
        make_trainer("tpu")


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edge_runtime.executorch_trainer")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FlexmoeError, match=r"pip install 'flexmoe\[server\]'") as caught:
        make_trainer("executorch")
    assert "\n" not in str(caught.value)


def test_without_the_extension_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a round: it counts the memory that programs plan."""
    monkeypatch.delitem(sys.modules, "edge_runtime.executorch_trainer")
    monkeypatch.setitem(sys.modules, "edge_runtime.native._native", None)
    monkeypatch.delattr(native, "_native")
    with pytest.raises(FlexmoeError, match=r"extension module .*; reinstall flexmoe") as caught:
        make_trainer("executorch")
    assert "\n" not in str(caught.value)


def test_a_step_changes_the_weights_and_evaluation_does_not(trainer: ExecuTorchTrainer) -> None:
    first = trainer.evaluate(BATCH)
    assert_weights(trainer, make_weights())
    step = trainer.train_step(BATCH, RATES)
    assert step.loss == pytest.approx(first.loss, abs=1e-6)
    np.testing.assert_allclose(step.stats, first.stats, rtol=1e-6)
    assert all((w != make_weights()[n]).any() for n, w in trainer.weights().items())
    assert trainer.evaluate(BATCH).loss < first.loss


def test_results_stay_when_the_next_step_runs(trainer: ExecuTorchTrainer) -> None:
    """The runtime uses its memory again; what was handed out must not change."""
    first = trainer.train_step(BATCH, RATES)
    stats = first.stats.copy()
    trainer.train_step(random_batch("digits", seed=2, real=1), RATES)
    np.testing.assert_array_equal(first.stats, stats)


def test_weights_are_copied_in_and_shown_without_a_copy(trainer: ExecuTorchTrainer) -> None:
    given = make_weights()
    trainer.assign(EXPERTS, given)
    shown = trainer.weights()
    for weight in given.values():
        weight += 1.0
    assert_weights(trainer, make_weights())
    before = shown[GATE].copy()
    trainer.train_step(BATCH, RATES)
    assert (shown[GATE] != before).any()


@pytest.mark.filterwarnings("error")
def test_weights_may_be_read_only(trainer: ExecuTorchTrainer) -> None:
    """As decoded blobs are."""
    weights = make_weights(seed=2)
    for weight in weights.values():
        weight.flags.writeable = False
    trainer.assign(EXPERTS, weights)
    trainer.train_step(BATCH, RATES)
    assert all(weight.flags.writeable for weight in trainer.weights().values())


def test_assign_forgets_the_momentum(trainer: ExecuTorchTrainer) -> None:
    losses = []
    for _ in range(2):
        trainer.assign(EXPERTS, make_weights())
        losses.append([trainer.train_step(BATCH, RATES).loss for _ in range(4)])
    assert losses[0] == losses[1]


# --- before load and assign ----------------------------------------------------------------------


def test_before_load() -> None:
    trainer = ExecuTorchTrainer()
    for call in (
        lambda: trainer.layout,
        lambda: trainer.assign(EXPERTS, make_weights()),
        lambda: trainer.train_step(BATCH, RATES),
        lambda: trainer.evaluate(BATCH),
    ):
        with pytest.raises(ProgramError, match=r"no program is loaded; call load\(\) first"):
            call()


def test_between_load_and_assign(trainer: ExecuTorchTrainer, digits: Programs) -> None:
    """Another program has other weights: those of the last one are not taken over."""
    for fresh in (ExecuTorchTrainer(), trainer):
        fresh.load(*digits)
        for call in (fresh.train_step, lambda batch, _, fresh=fresh: fresh.evaluate(batch)):
            with pytest.raises(ProgramError, match=r"no weights are assigned; call assign\(\)"):
                call(BATCH, RATES)


# --- experts and weights that do not fit ---------------------------------------------------------


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
def test_experts_that_do_not_fit(experts: list[int], says: str, trainer: ExecuTorchTrainer) -> None:
    with pytest.raises(ProgramError, match=says):
        trainer.assign(experts, make_weights(seed=2))
    assert_weights(trainer, make_weights(seed=1))


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
    changes: dict[str, np.ndarray | None], says: str, trainer: ExecuTorchTrainer
) -> None:
    weights = {n: w for n, w in {**make_weights(seed=2), **changes}.items() if w is not None}
    with pytest.raises(ProgramError, match=says):
        trainer.assign(EXPERTS, weights)
    assert_weights(trainer, make_weights(seed=1))


@pytest.mark.parametrize(
    "batch",
    [
        Batch(BATCH.x[:3], BATCH.y[:3], BATCH.sample_weight[:3]),
        Batch(BATCH.x[:, :63].copy(), BATCH.y, BATCH.sample_weight),
        Batch(BATCH.x.astype(np.float64), BATCH.y, BATCH.sample_weight),
        Batch(BATCH.x, BATCH.y.astype(np.int32), BATCH.sample_weight),
        Batch(np.asfortranarray(BATCH.x), BATCH.y, BATCH.sample_weight),
    ],
    ids=["few", "narrow", "float64", "int32", "fortran"],
)
def test_a_batch_of_another_shape_or_type(batch: Batch, trainer: ExecuTorchTrainer) -> None:
    for call in (lambda: trainer.train_step(batch, RATES), lambda: trainer.evaluate(batch)):
        with pytest.raises(ProgramError, match=r"the program failed: |a multiple of"):
            call()
    assert_weights(trainer, make_weights())


# --- programs that do not fit --------------------------------------------------------------------


def test_wrong_roles(digits: Programs, trainer: ExecuTorchTrainer) -> None:
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


def test_programs_of_different_models(
    digits: Programs, export_digits: Callable[[int], Programs], trainer: ExecuTorchTrainer
) -> None:
    """A pair shares weights and batches: `evaluate` gets batches of the training program's size."""
    with pytest.raises(ProgramError, match="of different models"):
        trainer.load(digits.training, export_digits(1).evaluation)


def test_a_failed_load_leaves_what_was_there(trainer: ExecuTorchTrainer, digits: Programs) -> None:
    with pytest.raises(ProgramError):
        trainer.load(digits.training, b"no program")
    assert trainer.layout.role == "train"
    assert_weights(trainer, make_weights())
    assert np.isfinite(trainer.train_step(BATCH, RATES).loss)


def other_program(layout: object) -> bytes:
    """A sealed ExecuTorch program that adds 1; `layout` is what it says of itself, if anything."""

    class AddOne(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    exported = torch.export.export(AddOne(), (torch.zeros(2),), strict=False)
    methods = None if layout is None else {LAYOUT_METHOD: layout}
    return seal(bytes(to_edge(exported, constant_methods=methods).to_executorch().buffer))


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (None, "not a flexmoe program of this ExecuTorch version"),
        (7, "layout cannot be read"),
        ("text", "layout cannot be read"),
        ('{"version":99}', "layout has version 99, this runtime reads version 2"),
    ],
)
def test_a_foreign_program(
    layout: object, says: str, digits: Programs, trainer: ExecuTorchTrainer
) -> None:
    with pytest.raises(ProgramError, match=says) as caught:
        trainer.load(other_program(layout), digits.evaluation)
    assert "\n" not in str(caught.value)


LOAD_ALL = """
import pathlib, sys
from edge_runtime.errors import ProgramError
from edge_runtime.executorch_trainer import ExecuTorchTrainer
good = pathlib.Path(sys.argv[1]).read_bytes()
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    try:
        ExecuTorchTrainer().load(path.read_bytes(), good)
        print("loaded", path.name)
    except ProgramError as error:
        assert "\\n" not in str(error)
        print("refused", path.name)
"""


def test_truncated_and_foreign_files_are_refused(digits: Programs, tmp_path: Path) -> None:
    """In a process of its own, where a crash of the runtime would be seen.

    That is all that can be promised: with some bytes of a program changed, stock ExecuTorch 1.5.1
    at times aborts in spite of its verification. On the way to a device digests guard the bytes.
    """
    files, good = tmp_path / "files", tmp_path / "good"
    files.mkdir()
    good.write_bytes(digits.evaluation)
    data, rng = digits.training, np.random.default_rng(0)
    lengths = {*range(64), *rng.integers(64, len(data), 60).tolist(), len(data) - 1}
    for length in lengths:
        (files / f"cut-{length}").write_bytes(data[:length])
    for number in range(20):
        (files / f"noise-{number}").write_bytes(rng.bytes(1 + 997 * number))
        # The runtime's identifier, and then noise.
        (files / f"magic-{number}").write_bytes(data[:8] + rng.bytes(16 + 997 * number))
    (files / "zeros").write_bytes(bytes(len(data)))
    (files / "text").write_text("hello\n" * 1000)
    np.savez(files / "weights", **make_weights())
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(good), str(files)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused = [f"refused {path.name}" for path in sorted(files.iterdir())]
    assert done.stdout.splitlines() == refused
