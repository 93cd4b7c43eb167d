"""The native trainer's own: threads, stock kernels, and programs that only it tells apart."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_runtime.errors import ProgramError
from edge_runtime.layout import ROLES
from edge_runtime.native_trainer import NativeTrainer, default_threads
from edge_runtime.program_file import seal, unseal
from edge_runtime.trainer import Batch, Rates
from edge_runtime.trainers import TRAINERS
from model_export.program import export_program
from tests.edge_runtime.assigned import DIGITS, RATES, assert_weights, assigned, make_weights
from tests.edge_runtime.foreign import other_program
from tests.model_export.custom_models import CUSTOM, Custom, register
from tests.native.exported import Export, Pair, make_export

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
    return assigned(NativeTrainer(threads=1), digits)


def test_it_is_the_default() -> None:
    assert next(iter(TRAINERS)) == "native"
    assert default_threads() >= 1


def test_a_batch_may_be_read_only(trainer: NativeTrainer) -> None:
    """As memory-mapped shards are; torch, for one, warns of such arrays."""
    batch = Batch(DIGITS.x.copy(), DIGITS.y.copy(), DIGITS.sample_weight.copy())
    for array in (batch.x, batch.y, batch.sample_weight):
        array.flags.writeable = False
    trainer.train_step(batch, RATES)
    assert all(weight.flags.writeable for weight in trainer.weights().values())


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


# --- before load, and programs that do not fit ----------------------------------------------------


def test_a_pair_of_different_kernels(digits: Pair, export: Export, trainer: NativeTrainer) -> None:
    with pytest.raises(ProgramError, match="of different models"):
        trainer.load(digits.training, export("digits", "stock").evaluation)


def test_a_layout_of_another_program(digits: Pair, trainer: NativeTrainer) -> None:
    with pytest.raises(ProgramError, match="layout does not fit its inputs") as caught:
        trainer.load(other_program(trainer.layout.to_json()), digits.evaluation)
    assert "\n" not in str(caught.value)
    assert_weights(trainer, make_weights())


def test_sealed_files_that_are_no_programs(digits: Pair, trainer: NativeTrainer) -> None:
    program = bytes(unseal(digits.training))
    for file, says in (
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
