"""The native trainer: the contract, and whole models against eager PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executorch.exir import to_edge

from edge_runtime.errors import ProgramError
from edge_runtime.layout import LAYOUT_METHOD, ROLES
from edge_runtime.native import _native
from edge_runtime.native_trainer import NativeTrainer, default_threads
from edge_runtime.parts import GATE, Tensors
from edge_runtime.program_file import seal, unseal
from edge_runtime.trainer import Batch, Rates, Trainer
from edge_runtime.trainers import TRAINERS, make_trainer
from model_export.program import export_program
from tests.model_export.custom_models import CUSTOM, Custom, register
from tests.model_export.eager import BATCH, SPECS, EagerSubset, random_batch, subset_weights
from tests.native.exported import Export, Pair, make_export

EXPERTS = [1, 4]
RATES = Rates(learning_rate=0.1, momentum=0.9)
DIGITS = random_batch("digits", seed=1)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return make_export(tmp_path_factory)


@pytest.fixture(scope="session")
def digits(export: Export) -> Pair:
    return export("digits")


@pytest.fixture
def trainer(digits: Pair) -> NativeTrainer:
    """A trainer with programs, experts and weights."""
    return assigned("digits", digits)


def assigned(name: str, pair: Pair, seed: int = 1) -> NativeTrainer:
    trainer = NativeTrainer(threads=1)
    trainer.load(*pair)
    trainer.assign(EXPERTS, subset_weights(SPECS[name], EXPERTS, seed))
    return trainer


def make_weights(seed: int = 1) -> Tensors:
    return subset_weights(SPECS["digits"], EXPERTS, seed)


def assert_weights(trainer: NativeTrainer, expected: Tensors) -> None:
    assert list(trainer.weights()) == list(expected)
    for name, weight in trainer.weights().items():
        np.testing.assert_array_equal(weight, expected[name], err_msg=name)


# --- whole models against eager PyTorch ----------------------------------------------------------


@pytest.mark.parametrize("kernels", ["native", "stock"])
@pytest.mark.parametrize("name", ["digits", "har", "cifar"])
def test_loss_statistics_and_gradients(name: str, kernels: str, export: Export) -> None:
    trainer = assigned(name, export(name, kernels))
    before = {n: w.copy() for n, w in trainer.weights().items()}
    eager = EagerSubset(SPECS[name], EXPERTS, before)
    batch = random_batch(name, seed=3, real=BATCH[name] - 1)
    loss, stats, gradients = eager.step(batch)
    tested = trainer.evaluate(batch)
    step = trainer.train_step(batch, Rates(learning_rate=1.0))
    for result in (tested, step):
        assert result.loss == pytest.approx(loss, abs=1e-5)
        np.testing.assert_allclose(result.stats, stats, atol=1e-5)
    for weight, after in trainer.weights().items():
        # Both sides are sums of float32; the weights' own rounding comes on top.
        np.testing.assert_allclose(
            before[weight] - after, gradients[weight], rtol=1e-5, atol=5e-7, err_msg=weight
        )


OPTIMIZERS: dict[str, tuple[Rates, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (Rates(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "momentum": (
        Rates(0.02, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.01),
    ),
    "adamw": (
        Rates(1e-3, weight_decay=0.02, optimizer="adamw"),
        lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.02),
    ),
    "clipped": (
        Rates(0.02, momentum=0.5, clip_norm=0.5),
        lambda p: torch.optim.SGD(p, 0.02, momentum=0.5),
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["digits", "har", "cifar"])
def test_a_training_curve(name: str, optimizer: str, export: Export) -> None:
    """100 steps follow eager PyTorch's within 1e-4."""
    rates, make = OPTIMIZERS[optimizer]
    trainer = assigned(name, export(name))
    eager = EagerSubset(SPECS[name], EXPERTS, trainer.weights())
    torch_optimizer = make(eager.model.parameters())
    batches = [random_batch(name, seed) for seed in range(5)]
    losses: list[tuple[float, float]] = []
    norms = []
    for step in range(100):
        batch = batches[step % len(batches)]
        expected, _, _ = eager.step(batch)
        if rates.clip_norm:
            parameters = eager.model.parameters()
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, rates.clip_norm)))
        torch_optimizer.step()
        losses.append((trainer.train_step(batch, rates).loss, expected))
    ours, theirs = np.array(losses).T
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert theirs[-5:].mean() < 0.98 * theirs[:5].mean()
    assert not norms or max(norms) > rates.clip_norm


@pytest.mark.parametrize("name", ["digits", "har", "cifar"])
def test_micro_batches_are_one_batch(name: str, export: Export) -> None:
    """Three micro-batches, step by step, against one batch of all samples in eager PyTorch."""
    trainer = assigned(name, export(name))
    eager = EagerSubset(SPECS[name], EXPERTS, trainer.weights())
    optimizer = torch.optim.SGD(eager.model.parameters(), 0.1, momentum=0.9)
    parts = [random_batch(name, seed) for seed in (1, 2, 3)]
    whole = Batch(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.sample_weight / 3 for part in parts]),
    )
    for _ in range(3):
        loss, stats, _ = eager.step(whole)
        optimizer.step()
        result = trainer.train_step(whole, RATES)
        assert result.loss == pytest.approx(loss, abs=1e-5)
        np.testing.assert_allclose(result.stats, stats, atol=1e-4)
    for weight, value in eager.model.named_parameters():
        np.testing.assert_allclose(
            trainer.weights()[weight], value.detach().numpy(), atol=1e-5, err_msg=weight
        )


def test_the_number_of_threads_does_not_matter(export: Export) -> None:
    batch, weights = random_batch("cifar", 1), []
    for threads in (1, 2, 3):
        trainer = NativeTrainer(threads)
        trainer.load(*export("cifar"))
        trainer.assign(EXPERTS, subset_weights(SPECS["cifar"], EXPERTS, 1))
        for _ in range(3):
            trainer.train_step(batch, RATES)
        weights.append({name: weight.copy() for name, weight in trainer.weights().items()})
    for other in weights[1:]:
        for name, weight in weights[0].items():
            np.testing.assert_array_equal(weight, other[name], err_msg=name)


# --- the contract --------------------------------------------------------------------------------


def test_make_trainer() -> None:
    assert next(iter(TRAINERS)) == "native"
    trainer: Trainer = make_trainer("native")
    assert isinstance(trainer, NativeTrainer) and trainer.name == "native"
    assert default_threads() >= 1


def test_layout(trainer: NativeTrainer) -> None:
    layout = trainer.layout
    assert (layout.role, layout.kernels, layout.k, layout.batch) == ("train", "native", 2, 16)
    assert [weight.name for weight in layout.weights] == list(trainer.weights())


def test_evaluate_leaves_the_weights(trainer: NativeTrainer) -> None:
    trainer.evaluate(DIGITS)
    assert_weights(trainer, make_weights())


def test_results_stay_when_the_next_step_runs(trainer: NativeTrainer) -> None:
    first = trainer.train_step(DIGITS, RATES)
    stats = first.stats.copy()
    trainer.train_step(random_batch("digits", seed=2, real=1), RATES)
    np.testing.assert_array_equal(first.stats, stats)


def test_weights_are_copied_in_and_shown_without_a_copy(trainer: NativeTrainer) -> None:
    given = make_weights()
    trainer.assign(EXPERTS, given)
    shown = trainer.weights()
    for weight in given.values():
        weight += 1.0
    assert_weights(trainer, make_weights())
    trainer.train_step(DIGITS, RATES)
    assert (shown[GATE] != make_weights()[GATE]).any()
    assert np.shares_memory(shown[GATE], trainer.weights()[GATE])


def test_shown_weights_outlive_the_trainer(digits: Pair) -> None:
    shown = assigned("digits", digits).weights()
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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_assign_forgets_the_optimizers_state(optimizer: Any, trainer: NativeTrainer) -> None:
    rates = Rates(0.01, momentum=0.9, optimizer=optimizer)
    losses = []
    for _ in range(2):
        trainer.assign(EXPERTS, make_weights())
        losses.append([trainer.train_step(DIGITS, rates).loss for _ in range(4)])
    assert losses[0] == losses[1]


def test_arrays_may_be_read_only(trainer: NativeTrainer) -> None:
    """As decoded blobs and memory-mapped shards are."""
    weights = make_weights(seed=2)
    batch = Batch(DIGITS.x.copy(), DIGITS.y.copy(), DIGITS.sample_weight.copy())
    for array in (*weights.values(), batch.x, batch.y, batch.sample_weight):
        array.flags.writeable = False
    trainer.assign(EXPERTS, weights)
    trainer.train_step(batch, RATES)
    assert all(weight.flags.writeable for weight in trainer.weights().values())


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
    trainer.load(*pair)
    trainer.assign(EXPERTS, subset_weights(SPECS[name], EXPERTS, 1))
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


def test_memory_need_leaves_what_is_loaded(trainer: NativeTrainer, export: Export) -> None:
    trainer.memory_need(*export("har"), RATES, 64)
    assert trainer.layout.model == "digits"
    assert_weights(trainer, make_weights())


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


def test_a_window_of_padding_only_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dilation moves every tap of the pool outside of the image: no pixel has a gradient."""
    layers = lambda: [  # noqa: E731
        torch.nn.Conv2d(3, 4, 1),
        torch.nn.MaxPool2d((2, 1), stride=1, padding=(1, 0), dilation=(9, 1)),
        torch.nn.ReLU(),
    ]
    monkeypatch.setitem(CUSTOM, "padding", Custom((3, 8, 8), layers, set()))
    spec = register("padding", monkeypatch)
    trainer = NativeTrainer(1)
    trainer.load(*(export_program(spec, 2, 4, role, "native").data for role in ROLES))
    rng = np.random.default_rng(1)
    weights = {
        weight.name: rng.standard_normal(weight.shape, dtype=np.float32)
        for weight in trainer.layout.weights
    }
    trainer.assign([1, 2], weights)
    x = rng.standard_normal((4, 3, 8, 8), dtype=np.float32)
    batch = Batch(x, np.array([0, 1, 2, 0]), np.full(4, 0.25, np.float32))
    assert np.isfinite(trainer.train_step(batch, Rates(0.1)).loss)
    changed = {n for n, weight in trainer.weights().items() if (weight != weights[n]).any()}
    assert changed and not any(n.startswith("backbone") for n in changed)


STOCK_THREADS = """
import os, pathlib, sys
from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.trainer import Rates
from tests.model_export.eager import SPECS, random_batch, subset_weights

count = lambda: len(os.listdir("/proc/self/task"))
threads, before = int(sys.argv[1]), count()
trainer = NativeTrainer(threads)
trainer.load(*(pathlib.Path(name).read_bytes() for name in sys.argv[2:]))
trainer.assign([1, 4], subset_weights(SPECS["digits"], [1, 4], 1))
trainer.train_step(random_batch("digits", 1), Rates(0.1))
print(count() - before)
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_stock_kernels_take_as_many_threads_as_they_may(
    threads: int, export: Export, tmp_path: Path
) -> None:
    files = [tmp_path / role for role in ROLES]
    for file, data in zip(files, export("digits", "stock"), strict=True):
        file.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", STOCK_THREADS, str(threads), *map(str, files)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    # Our kernels' threads, and the stock ones': in both, the caller is one of them.
    assert done.stdout.strip() == str(2 * (threads - 1)), done.stderr[-2000:]


def test_both_runtimes_in_one_process(digits: Pair, export: Export, tmp_path: Path) -> None:
    """They share ExecuTorch's library, whichever was imported first."""
    script = """
import sys
{imports}
import numpy as np
from edge_runtime.trainer import Batch, Rates
from tests.model_export.eager import SPECS, random_batch, subset_weights
import pathlib
losses = []
for trainer, names in ((ExecuTorchTrainer(), sys.argv[1:3]), (NativeTrainer(1), sys.argv[1:3]),
                       (NativeTrainer(1), sys.argv[3:5])):
    trainer.load(*(pathlib.Path(name).read_bytes() for name in names))
    trainer.assign([1, 4], subset_weights(SPECS["digits"], [1, 4], 1))
    losses.append([trainer.train_step(random_batch("digits", 1), Rates(0.1)).loss
                   for _ in range(3)])
np.testing.assert_allclose(losses[1:], [losses[0]] * 2, atol=1e-5)
"""
    imports = [
        "from edge_runtime.executorch_trainer import ExecuTorchTrainer",
        "from edge_runtime.native_trainer import NativeTrainer",
    ]
    files = [tmp_path / str(number) for number in range(4)]
    for file, data in zip(files, (*export("digits", "stock"), *digits), strict=True):
        file.write_bytes(data)
    for order in (imports, imports[::-1]):
        done = subprocess.run(
            [sys.executable, "-c", script.format(imports="\n".join(order)), *map(str, files)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "executorch:" not in done.stderr  # its log lines


# --- before load and assign ----------------------------------------------------------------------


def test_before_load() -> None:
    trainer = NativeTrainer(threads=1)
    for call in (
        lambda: trainer.layout,
        lambda: trainer.assign(EXPERTS, make_weights()),
        lambda: trainer.weights(),
        lambda: trainer.train_step(DIGITS, RATES),
        lambda: trainer.evaluate(DIGITS),
    ):
        with pytest.raises(ProgramError, match=r"no program is loaded; call load\(\) first"):
            call()


def test_between_load_and_assign(trainer: NativeTrainer, digits: Pair) -> None:
    """Another program has other weights: those of the last one are not taken over."""
    for fresh in (NativeTrainer(1), trainer):
        fresh.load(*digits)
        for call in (fresh.train_step, lambda batch, _, fresh=fresh: fresh.evaluate(batch)):
            with pytest.raises(ProgramError, match=r"no weights are assigned; call assign\(\)"):
                call(DIGITS, RATES)


@pytest.mark.parametrize(
    ("experts", "says"),
    [
        ([1], r"takes 2 different experts, got \[1\]"),
        ([3, 3], r"takes 2 different experts, got \[3, 3\]"),
        ([0, 8], r"experts are 0 to 7, got \[0, 8\]"),
        ([-1, 0], r"experts are 0 to 7, got \[-1, 0\]"),
    ],
)
def test_experts_that_do_not_fit(experts: list[int], says: str, trainer: NativeTrainer) -> None:
    with pytest.raises(ProgramError, match=says):
        trainer.assign(experts, make_weights(seed=2))
    assert_weights(trainer, make_weights())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({GATE: None}, r"weight 'gate.weight' is missing \(model 'digits', k=2\)"),
        ({"experts.2.0.bias": np.zeros(128, np.float32)}, "weight 'experts.2.0.bias' is unknown"),
        ({GATE: np.zeros((64, 8), np.float32)}, r"expected float32 \[8, 64\], got float32 \[64, 8"),
        ({GATE: np.zeros((8, 64))}, r"got float64 \[8, 64\]"),
        ({GATE: np.full((8, 64), np.nan, np.float32)}, "'gate.weight' holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit(
    changes: dict[str, np.ndarray | None], says: str, trainer: NativeTrainer
) -> None:
    weights = {n: w for n, w in {**make_weights(seed=2), **changes}.items() if w is not None}
    with pytest.raises(ProgramError, match=says):
        trainer.assign(EXPERTS, weights)
    assert_weights(trainer, make_weights())


# --- programs that do not fit --------------------------------------------------------------------


def test_wrong_roles(digits: Pair, trainer: NativeTrainer) -> None:
    training, evaluation = digits
    for pair, got in (
        ((evaluation, training), "'evaluate' and 'train'"),
        ((training, training), "'train' and 'train'"),
    ):
        with pytest.raises(ProgramError, match=f"a training and an evaluation .*, got {got}"):
            trainer.load(*pair)


def test_programs_of_different_models(digits: Pair, export: Export, trainer: NativeTrainer) -> None:
    for other in (export("har"), export("digits", batch=4), export("digits", "stock")):
        with pytest.raises(ProgramError, match="of different models"):
            trainer.load(digits.training, other.evaluation)


def test_a_failed_load_leaves_what_was_there(trainer: NativeTrainer, digits: Pair) -> None:
    with pytest.raises(ProgramError):
        trainer.load(digits.training, b"no program")
    assert_weights(trainer, make_weights())
    assert np.isfinite(trainer.train_step(DIGITS, RATES).loss)


def other_program(layout: object) -> bytes:
    """A sound program that adds 1; `layout` is what it says of itself, if anything."""

    class AddOne(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    exported = torch.export.export(AddOne(), (torch.zeros(2),), strict=False)
    methods = None if layout is None else {LAYOUT_METHOD: layout}
    return seal(bytes(to_edge(exported, constant_methods=methods).to_executorch().buffer))


def digits_layout(pair: Pair) -> str:
    trainer = NativeTrainer(1)
    trainer.load(*pair)
    return trainer.layout.to_json()


def test_foreign_programs(digits: Pair, trainer: NativeTrainer) -> None:
    layout = digits_layout(digits)
    version = json.dumps({**json.loads(layout), "version": 99})
    for text, says in (
        (None, "has no method 'flexmoe_layout'"),
        (7, "layout cannot be read"),
        ("text", "layout cannot be read"),
        (version, "layout has version 99, this runtime reads version 2"),
        (layout, "layout does not fit its inputs"),
    ):
        with pytest.raises(ProgramError, match=says) as caught:
            trainer.load(other_program(text), digits.evaluation)
        assert "\n" not in str(caught.value)
    assert_weights(trainer, make_weights())


def test_files_that_are_no_programs(digits: Pair, trainer: NativeTrainer) -> None:
    program = bytes(unseal(digits.training))
    for file, says in (
        (b"", "not a flexmoe program"),
        (digits.training[:-1], "has no seal"),
        (program, "has no seal"),
        (seal(program[:4] + b"ET99" + program[8:]), "format b'ET99', this runtime reads b'ET12'"),
        (seal(program[:1000]), "ExecuTorch|damaged"),
        (seal(program[:8]), "not an ExecuTorch program"),
    ):
        for pair in ((file, digits.evaluation), (digits.training, file)):
            with pytest.raises(ProgramError, match=says):
                trainer.load(*pair)
            with pytest.raises(ProgramError, match=says):
                trainer.memory_need(*pair, RATES, 16)
    assert_weights(trainer, make_weights())


def test_an_operator_of_a_later_release(digits: Pair, trainer: NativeTrainer) -> None:
    program = bytes(unseal(digits.training))
    later = program.replace(b"flexmoe::gemm", b"flexmoe::gelu")
    assert later != program
    with pytest.raises(ProgramError, match=r"operator flexmoe::gelu\.out, which this runtime does"):
        trainer.load(seal(later), digits.evaluation)


def test_rates_that_no_rule_can_work_with(trainer: NativeTrainer) -> None:
    for rates, says in (
        (Rates(float("nan")), "learning_rate is nan"),
        (Rates(-0.1), "learning_rate is -0.1"),
        (replace(RATES, weight_decay=float("inf")), "weight_decay is inf"),
        (Rates(0.1, optimizer="adamw", beta2=1.0), "beta1 and beta2 are 0.9 and 1"),
        (Rates(0.1, optimizer="adamw", epsilon=1e-50), "epsilon is 0 as a float32"),
        (Rates(0.1, optimizer="lion"), "unknown optimizer 'lion'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ProgramError, match=says):
            trainer.train_step(DIGITS, rates)
    assert_weights(trainer, make_weights())
