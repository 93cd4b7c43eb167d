"""Local epochs against a plain loop in eager PyTorch; batches, interruption, divergence.

With both trainers: nothing here may depend on which one a device has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker_server.roster import KERNELS
from edge_runtime.errors import ProgramError
from edge_runtime.local_training import Evaluation, batches, evaluate, fit
from edge_runtime.trainer import Batch, Rates, StepResult, Trainer
from edge_runtime.trainers import make_trainer
from tests.model_export.eager import BATCH, SPECS, EagerSubset, subset_weights
from tests.native.exported import make_export

SPEC, SIZE, EXPERTS = SPECS["digits"], BATCH["digits"], [3, 6]
RATES = Rates(learning_rate=0.05, momentum=0.9, weight_decay=1e-3)
Data = tuple[np.ndarray, np.ndarray]


class RecordingTrainer:
    """A real trainer; keeps the batches of its training steps."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.batches: list[Batch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def train_step(self, batch: Batch, rates: Rates) -> StepResult:
        self.batches.append(batch)
        return self._trainer.train_step(batch, rates)


MakeTrainer = Callable[[int], RecordingTrainer]


@pytest.fixture(params=list(KERNELS))
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeTrainer:
    """Gives a trainer whose programs take a batch of this size; it has experts and weights."""

    def trainer_of(batch: int) -> RecordingTrainer:
        trainer = make_trainer(request.param)
        trainer.load(*make_export(tmp_path_factory)("digits", KERNELS[request.param], batch))
        trainer.assign(EXPERTS, subset_weights(SPEC, EXPERTS, seed=1))
        return RecordingTrainer(trainer)

    return trainer_of


@pytest.fixture
def trainer(make: MakeTrainer) -> RecordingTrainer:
    return make(SIZE)


def make_data(n: int, seed: int = 0) -> Data:
    """`n` samples of ten classes; no two samples are equal."""
    rng = np.random.default_rng(seed)
    y = rng.integers(SPEC.classes, size=n)
    centres = np.random.default_rng(99).normal(size=(SPEC.classes, *SPEC.shape))
    x = centres[y] + rng.normal(size=(n, *SPEC.shape))
    return x.astype(np.float32), y


def samples_of(epoch: list[Batch], x: np.ndarray) -> list[int]:
    """The numbers of the real samples in these batches."""
    rows = [row for batch in epoch for row in batch.x[batch.sample_weight > 0]]
    return [int(np.flatnonzero((x == row).all(1))[0]) for row in rows]


@given(
    order=st.integers(0, 60).flatmap(lambda n: st.permutations(range(n))),
    size=st.integers(1, 20),
    multiple=st.integers(1, 20),
)
def test_batches_hold_every_sample_once(order: list[int], size: int, multiple: int) -> None:
    x = np.arange(len(order), dtype=np.float32)[:, None]
    y = np.arange(len(order)) % 7
    made = list(batches(x, y, np.array(order, dtype=np.int64), size, multiple))
    assert len(made) == -(-len(order) // size)
    seen: list[int] = []
    for number, batch in enumerate(made):
        real = min(size, len(order) - number * size)
        n = len(batch.y)
        assert n % multiple == 0 and real <= n < real + multiple  # no piece is padding alone
        assert batch.x.shape == (n, 1) and batch.y.shape == batch.sample_weight.shape == (n,)
        assert (batch.x.dtype, batch.y.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(
            batch.sample_weight, np.array([1 / real] * real + [0] * (n - real), np.float32)
        )
        # Padding is a sample like others, with its own label.
        np.testing.assert_array_equal(batch.y, batch.x[:, 0].astype(int) % 7)
        seen += [int(value) for value in batch.x[:real, 0]]
    assert seen == order


@pytest.mark.parametrize("batch", [SIZE, 3 * SIZE, SIZE + 3, 5], ids="batch={}".format)
@pytest.mark.parametrize("n", [1, SIZE, 3 * SIZE, 3 * SIZE + 5])
def test_fit_is_a_plain_loop(n: int, batch: int, trainer: RecordingTrainer) -> None:
    """A step is of `batch` samples, however many the program takes at once."""
    (x, y), epochs, seed = make_data(n), 3, 11
    eager = EagerSubset(SPEC, EXPERTS, trainer.weights())
    optimizer = torch.optim.SGD(
        eager.model.parameters(),
        lr=RATES.learning_rate,
        momentum=RATES.momentum,
        weight_decay=RATES.weight_decay,
    )
    result = fit(trainer, x, y, epochs, batch, RATES, seed)
    assert result is not None

    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order, stats = rng.permutation(n), np.zeros((2, 3))
        for start in range(0, n, batch):
            chosen = order[start : start + batch]  # not padded: the mean over the real samples
            mean = np.full(len(chosen), 1 / len(chosen), np.float32)
            stats += eager.step(Batch(x[chosen], y[chosen], mean))[1]
            optimizer.step()
    routed, loss_sum, hits = stats.T
    assert result.usage == routed.astype(int).tolist() and sum(result.usage) == n
    assert result.hits == hits.astype(int).tolist()
    assert result.loss == pytest.approx((loss_sum / np.maximum(routed, 1)).tolist(), abs=1e-4)
    assert result.train_loss == pytest.approx(loss_sum.sum() / n, abs=1e-4)
    assert result.steps == epochs * -(-n // batch)
    for name, parameter in eager.model.named_parameters():
        np.testing.assert_allclose(
            trainer.weights()[name], parameter.detach().numpy(), rtol=0, atol=1e-4, err_msg=name
        )


def test_an_expert_that_no_sample_chose_has_loss_zero(trainer: RecordingTrainer) -> None:
    x, y = make_data(1)
    result = fit(trainer, x, y, 1, SIZE, RATES, seed=0)
    assert result is not None and sorted(result.usage) == [0, 1]
    idle = result.usage.index(0)
    assert (result.loss[idle], result.hits[idle]) == (0.0, 0) and result.loss[1 - idle] > 0


def test_every_epoch_holds_every_sample_once_in_another_order(trainer: RecordingTrainer) -> None:
    n, epochs = 2 * SIZE + 3, 3
    x, y = make_data(n)
    fit(trainer, x, y, epochs, SIZE, RATES, seed=5)
    steps = len(trainer.batches) // epochs
    orders = [
        samples_of(trainer.batches[epoch * steps : (epoch + 1) * steps], x)
        for epoch in range(epochs)
    ]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert len({tuple(order) for order in orders}) == epochs


def test_the_order_depends_on_the_seed_only(trainer: RecordingTrainer) -> None:
    x, y = make_data(2 * SIZE + 3)

    def order(seed: int, rates: Rates = RATES) -> list[int]:
        trainer.batches.clear()
        fit(trainer, x, y, 1, SIZE, rates, seed)
        return samples_of(trainer.batches, x)

    first = order(7)
    np.random.seed(0)
    assert order(7, Rates(learning_rate=0.001)) == first
    assert order(8) != first


def test_the_same_work_gives_the_same_bits(trainer: RecordingTrainer) -> None:
    x, y = make_data(3 * SIZE + 1)
    runs = []
    for _ in range(2):
        trainer.assign(EXPERTS, subset_weights(SPEC, EXPERTS, seed=1))
        result = fit(trainer, x, y, 2, SIZE, RATES, seed=3)
        runs.append((result, [weight.tobytes() for weight in trainer.weights().values()]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_interrupted_between_two_steps(steps: int, trainer: RecordingTrainer) -> None:
    x, y = make_data(3 * SIZE)
    asked = 0

    def interrupted() -> bool:
        nonlocal asked
        asked += 1
        return asked > steps

    assert fit(trainer, x, y, 5, SIZE, RATES, seed=0, interrupted=interrupted) is None
    assert len(trainer.batches) == steps and asked == steps + 1


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize(
    ("epochs", "rate", "says"),
    [(3, 1e30, r"after \d+ steps \(loss"), (1, 3e38, r"after 1 steps \(weights")],
)
def test_divergence_is_one_clear_line(
    epochs: int, rate: float, says: str, trainer: RecordingTrainer
) -> None:
    """Also in the very last step, whose own loss is still that of the weights before it."""
    x, y = make_data(SIZE)
    with pytest.raises(ProgramError, match=f"training diverged {says}") as caught:
        fit(trainer, 1e4 * x, y, epochs, SIZE, Rates(rate), seed=0)
    assert f"lower train.learning_rate, now {rate}" in str(caught.value)


@pytest.mark.parametrize("n", [1, SIZE, 2 * SIZE + 7])
def test_evaluate_is_a_plain_loop(n: int, trainer: RecordingTrainer) -> None:
    x, y = make_data(n, seed=4)
    before = {name: weight.copy() for name, weight in trainer.weights().items()}
    model = EagerSubset(SPEC, EXPERTS, before).model
    with torch.no_grad():
        logits, _ = model(torch.tensor(x), torch.tensor(EXPERTS))
    result = evaluate(trainer, x, y)
    assert (result.hits, result.samples) == (int((logits.argmax(1).numpy() == y).sum()), n)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(y)).item()
    assert result.loss == pytest.approx(expected, abs=1e-5)
    for name, weight in trainer.weights().items():
        np.testing.assert_array_equal(weight, before[name])


def test_evaluate_on_nothing(trainer: RecordingTrainer) -> None:
    x, y = make_data(0)
    assert evaluate(trainer, x, y) == Evaluation(hits=0, samples=0, loss=0.0)


def test_training_learns(trainer: RecordingTrainer) -> None:
    x, y = make_data(200)
    x_test, y_test = make_data(100, seed=1)
    before = evaluate(trainer, x_test, y_test)
    fit(trainer, x, y, 5, SIZE, RATES, seed=0)
    after = evaluate(trainer, x_test, y_test)
    assert after.hits > 90 > 50 > before.hits and after.loss < before.loss


def test_a_batch_of_one(make: MakeTrainer) -> None:
    trainer = make(1)
    x, y = make_data(3)
    result = fit(trainer, x, y, 2, 1, RATES, seed=0)
    assert result is not None and result.steps == 6 and sum(result.usage) == 3
