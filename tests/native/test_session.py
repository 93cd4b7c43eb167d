"""A session's own promises: what it refuses, before anything is written, and what it shares."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.errors import ProgramError
from edge_runtime.native import _native
from edge_runtime.optimizer import Optimizer
from edge_runtime.program_file import unseal
from edge_runtime.trainer import Batch, Rates
from tests.model_export.eager import SPECS, EagerSubset, random_batch, subset_weights
from tests.native.exported import Export, Pair, make_export

EXPERTS = [1, 4]
BATCH = random_batch("digits", seed=1)
SGD = _native.Rates(**asdict(Rates(0.1, momentum=0.9)))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return make_export(tmp_path_factory)


@pytest.fixture(scope="module")
def digits(export: Export) -> Pair:
    return export("digits")


def make_session(pair: Pair, threads: int = 1) -> _native.Session:
    """A session of the digits model with experts and weights."""
    training, evaluation = (bytes(unseal(file)) for file in pair)
    session = _native.Session(training, evaluation, classes=10, experts=8, threads=threads)
    session.begin(EXPERTS)
    weights = subset_weights(SPECS["digits"], EXPERTS, seed=1).values()
    for held, weight in zip(session.weights, weights, strict=True):
        held[...] = weight
    return session


@pytest.fixture
def session(digits: Pair) -> _native.Session:
    return make_session(digits)


@pytest.fixture
def untouched(session: _native.Session) -> Iterator[None]:
    """Checks that the weights, and the step after, are those of a session nothing happened to."""
    before = [weight.copy() for weight in session.weights]
    yield
    for weight, expected in zip(session.weights, before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    loss, _ = step(session)
    names = subset_weights(SPECS["digits"], EXPERTS, seed=1)
    eager = EagerSubset(SPECS["digits"], EXPERTS, dict(zip(names, before, strict=True)))
    assert loss == pytest.approx(eager.step(BATCH)[0], abs=1e-5)


def step(
    session: _native.Session, batch: Batch = BATCH, rates: _native.Rates = SGD
) -> tuple[float, NDArray[np.float32]]:
    return session.train_step(batch.x, batch.y, batch.sample_weight, rates)


# --- batches that do not fit ---------------------------------------------------------------------


def with_item(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[array.size // 2] = value
    return changed


def misaligned(array: np.ndarray) -> np.ndarray:
    room = np.zeros(array.nbytes + 1, np.uint8)[1:]
    moved = room.view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


X, Y, WEIGHT = BATCH.x, BATCH.y, BATCH.sample_weight
BAD: dict[str, tuple[Batch, str]] = {
    "few": (Batch(X[:3], Y[:3], WEIGHT[:3]), "x: expected a multiple of 16 samples, got 3"),
    "none": (Batch(X[:0], Y[:0], WEIGHT[:0]), "x: expected a multiple of 16 samples, got 0"),
    "narrow": (
        Batch(X[:, :63].copy(), Y, WEIGHT),
        r"x: expected float32 \[n, 64\], got float32 \[16, 63\]",
    ),
    "flat": (Batch(X.reshape(-1), Y, WEIGHT), r"got float32 \[1024\]"),
    "float64": (Batch(X.astype(np.float64), Y, WEIGHT), r"x: .*, got float64 \[16, 64\]"),
    "float16": (Batch(X.astype(np.float16), Y, WEIGHT), "x: expected float32 or int64, got .* 'e'"),
    "fortran": (Batch(np.asfortranarray(X), Y, WEIGHT), "x: expected a C-contiguous array"),
    "strided": (Batch(np.repeat(X, 2, 0)[::2], Y, WEIGHT), "x: expected a C-contiguous array"),
    "misaligned": (Batch(misaligned(X), Y, WEIGHT), "x: the array is not aligned"),
    "list": (Batch(X.tolist(), Y, WEIGHT), "x: expected an array, got list"),  # type: ignore
    "nan": (Batch(with_item(X, np.nan), Y, WEIGHT), "x holds NaN or infinity"),
    "infinity": (Batch(with_item(X, -np.inf), Y, WEIGHT), "x holds NaN or infinity"),
    "int32": (
        Batch(X, Y.astype(np.int32), WEIGHT),
        r"y: expected int64 \[n\], got int32 \[16\]",
    ),
    "label": (Batch(X, with_item(Y, 10), WEIGHT), "y: labels are 0 to 9, got 10"),
    "negative": (Batch(X, with_item(Y, -1), WEIGHT), "y: labels are 0 to 9, got -1"),
    "columns": (Batch(X, Y[:, None], WEIGHT), r"y: expected int64 \[n\], got int64 \[16, 1\]"),
    "labels": (Batch(X, Y[:8], WEIGHT), "have 16, 8 and 16 samples"),
    "weights": (Batch(X, Y, np.repeat(WEIGHT, 2)), "have 16, 16 and 32 samples"),
    "weight": (
        Batch(X, Y, with_item(WEIGHT, np.nan)),
        "sample_weight: expected finite numbers of at least 0, got -?nan",
    ),
    "debt": (Batch(X, Y, with_item(WEIGHT, -0.5)), "of at least 0, got -0.5"),
    "none at all": (Batch(X, Y, None), "sample_weight: expected an array"),  # type: ignore
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", BAD)
def test_a_batch_that_does_not_fit(name: str, session: _native.Session) -> None:
    batch, says = BAD[name]
    calls: list[Callable[[], object]] = [
        lambda: step(session, batch),
        lambda: session.evaluate(batch.x, batch.y, batch.sample_weight),
    ]
    for call in calls:
        with pytest.raises(ProgramError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("untouched")
def test_experts_that_do_not_fit(session: _native.Session) -> None:
    for experts, says in (
        ([1], "takes 2 experts, got 1"),
        ([1, 8], "experts are different numbers from 0 to 7, got 8"),
        ([2, 2], "experts are different numbers from 0 to 7, got 2"),
        ([-1, 2], "got -1"),
        ([0.0, 1.0], "experts: expected whole numbers, got 0.0"),
        ([2**70, 1], f"experts: expected whole numbers, got {2**70}"),
        (["0", "1"], "experts: expected whole numbers, got '0'"),
        (7, "experts: expected a list of numbers, got int"),
    ):
        with pytest.raises(ProgramError, match=says):
            session.begin(experts)  # type: ignore[arg-type]


def test_no_step_before_begin(digits: Pair) -> None:
    training, evaluation = (bytes(unseal(file)) for file in digits)
    session = _native.Session(training, evaluation, classes=10, experts=8, threads=1)
    with pytest.raises(ProgramError, match=r"no weights are assigned; call assign\(\)"):
        step(session)


# --- numbers that are not finite -----------------------------------------------------------------


def test_a_loss_that_is_not_finite_leaves_the_weights(session: _native.Session) -> None:
    session.weights[0][0, 0] = np.float32(np.nan)
    before = [weight.copy() for weight in session.weights]
    loss, _ = step(session)
    assert not np.isfinite(loss)
    for weight, expected in zip(session.weights, before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_gradient_that_is_not_finite_leaves_the_weights(session: _native.Session) -> None:
    """Of huge pixels under tiny weights: the loss is finite, a product of its gradient is not."""
    session.weights[0][...] *= np.float32(1e-30)
    batch = Batch(X * np.float32(1e30), Y, WEIGHT * np.float32(1e12))
    before = [weight.copy() for weight in session.weights]
    loss, _ = step(session, batch)
    tested, _ = session.evaluate(batch.x, batch.y, batch.sample_weight)
    assert np.isfinite(tested) and np.isnan(loss)
    for weight, expected in zip(session.weights, before, strict=True):
        np.testing.assert_array_equal(weight, expected)


# --- optimizers ----------------------------------------------------------------------------------


def test_another_optimizer_begins_anew(digits: Pair) -> None:
    """What SGD kept as its velocity is not AdamW's mean."""
    adamw = _native.Rates(**asdict(Rates(0.01, optimizer="adamw")))
    switched, fresh = make_session(digits), make_session(digits)
    for _ in range(3):
        step(switched)
    for there, here in zip(fresh.weights, switched.weights, strict=True):
        there[...] = here
    for session in (switched, fresh):
        for _ in range(2):
            step(session, rates=adamw)
    for there, here in zip(fresh.weights, switched.weights, strict=True):
        np.testing.assert_array_equal(there, here)


def test_huge_gradients_are_clipped(digits: Pair) -> None:
    """Finite ones whose squares are no floats, as the oracle clips them."""
    rates = Rates(0.5, clip_norm=0.25)
    session = make_session(digits)
    huge = Batch(X, Y, WEIGHT * np.float32(1e22))
    before = [weight.copy() for weight in session.weights]
    loss, _ = step(session, huge, _native.Rates(**asdict(rates)))
    assert np.isfinite(loss)
    fresh = make_session(digits)
    step(fresh, huge, _native.Rates(**asdict(Rates(0.0))))
    gradients = [gradient.copy() for gradient in fresh.gradients]
    assert max(float(np.abs(gradient).max()) for gradient in gradients) > 1e20
    Optimizer(before).step(gradients, rates)
    for weight, expected in zip(session.weights, before, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)


# --- what is shared ------------------------------------------------------------------------------


def test_gradients_are_those_of_the_step(session: _native.Session) -> None:
    names = subset_weights(SPECS["digits"], EXPERTS, seed=1)
    eager = EagerSubset(SPECS["digits"], EXPERTS, names)
    step(session)
    expected = eager.step(BATCH)[2]
    for name, gradient in zip(names, session.gradients, strict=True):
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-7)


def test_views_keep_the_session_alive(digits: Pair) -> None:
    weights, gradients = (lambda s: (s.weights, s.gradients))(make_session(digits))
    expected = [weight.copy() for weight in weights]
    gc.collect()
    fillers = [np.ones_like(weight) for weight in weights for _ in range(8)]
    for weight, value in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert all((gradient == 0).all() for gradient in gradients) and fillers


def test_weights_are_aligned(session: _native.Session) -> None:
    assert all(weight.ctypes.data % 64 == 0 for weight in (*session.weights, *session.gradients))


def test_programs_come_as_any_bytes(digits: Pair) -> None:
    facts = [
        _native.describe(kind(unseal(digits.training)))
        for kind in (bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8))
    ]
    assert all(each == facts[0] for each in facts)
    assert facts[0]["operators"] and facts[0]["inputs"][-1] == "float32 [16]"
    with pytest.raises(ProgramError, match="expected an array, got str"):
        _native.describe("program")


# --- threads -------------------------------------------------------------------------------------


def test_a_number_of_threads_that_is_none(digits: Pair) -> None:
    for threads in (0, 257, 2**40):
        with pytest.raises(ProgramError, match=f"expected 1 to 256 threads, got {threads}"):
            make_session(digits, threads)


@pytest.mark.parametrize("kernels", ["native", "stock"])
def test_sessions_in_threads_of_their_own(kernels: str, export: Export) -> None:
    pair = export("digits", kernels)
    expected = step(make_session(pair))[0]
    losses: list[list[float]] = [[], [], []]
    sessions = [make_session(pair) for _ in losses]
    frozen = _native.Rates(**asdict(Rates(0.0)))

    def work(number: int) -> None:
        for _ in range(200):
            losses[number].append(step(sessions[number], rates=frozen)[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(losses))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert losses == [[expected] * 200] * len(losses)


def test_one_session_in_three_threads_serves_one_and_refuses_the_others(digits: Pair) -> None:
    """No step is half another thread's: each is whole, or refused."""
    session = make_session(digits)
    frozen = _native.Rates(**asdict(Rates(0.0)))
    expected = step(session, rates=frozen)[0]
    big = Batch(np.tile(X, (64, 1)), np.tile(Y, 64), np.tile(WEIGHT / 64, 64))
    messages: list[str] = []
    losses: list[float] = []
    held: list[int] = []

    def work() -> None:
        for _ in range(50):
            try:
                losses.append(step(session, big, frozen)[0])
                held.append(sum(session.memory.values()))
            except ProgramError as error:
                messages.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert losses and messages and held
    assert set(messages) == {"the session is in use by another thread; one at a time"}
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.isfinite(step(session, rates=frozen)[0])
