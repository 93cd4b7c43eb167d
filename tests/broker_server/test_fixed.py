"""The fixed policy: what the file says, within the capacities; and files that say nothing good."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker_server.assignment import Problem, policy
from edge_runtime.errors import ConfigError, FleetError

TABLE = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)


def make_problem(quality: Any = None, **changes: Any) -> Problem:
    quality = np.ones((4, 4)) if quality is None else np.asarray(quality, dtype=float)
    clients, experts = quality.shape
    fields: dict[str, Any] = {
        "quality": quality,
        "samples": np.full(clients, 10),
        "capacity": np.full(clients, experts),
        "lower": np.zeros(experts),
        "upper": np.full(experts, np.inf),
        "seed": 0,
    }
    return Problem(**{**fields, **changes})


def saved(folder: Path, array: Any, name: str = "X.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


def given_by(path: Path | str, problem: Problem) -> NDArray[np.bool_]:
    return policy("fixed", file=path)(problem).X


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.uint16, np.int64, np.float32, ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_file_is_the_assignment(tmp_path: Path, kind: Any, order: Any) -> None:
    path = saved(tmp_path, np.array(TABLE, dtype=kind, order=order))
    answer = policy("fixed", file=str(path))(make_problem())
    assert answer.X.dtype == np.bool_ and (answer.X == TABLE).all()
    assert answer.load.tolist() == [30, 30, 20, 20]
    assert math.isnan(answer.bound) and answer.solver == "fixed"


def test_what_a_policy_wrote_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    problem = make_problem(rng.random((9, 5)), capacity=rng.integers(1, 6, 9))
    written = policy("greedy")(problem).X
    assert (given_by(saved(tmp_path, written), problem) == written).all()


def test_rows_go_by_place(tmp_path: Path) -> None:
    path = saved(tmp_path, TABLE)
    problem = make_problem(np.ones((2, 4)), places=np.array([3, 1]))
    assert (given_by(path, problem) == TABLE[[3, 1]]).all()
    assert (given_by(path, make_problem(np.ones((3, 4)))) == TABLE[:3]).all()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
            st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=5, max_size=5),
            st.integers(1, 5),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**40),
)
def test_a_row_too_long_keeps_its_best(tmp_path: Path, rows: list[Any], seed: int) -> None:
    table, quality, capacity = (list(column) for column in zip(*rows, strict=True))
    path = saved(tmp_path, np.array(table), f"{seed}-{hash(str(rows))}.npy")
    problem = make_problem(quality, capacity=np.array(capacity), seed=seed)
    X = given_by(path, problem)
    for c, (listed, scores, k) in enumerate(rows):
        kept = [scores[e] for e in range(5) if X[c, e]]
        offered = sorted((scores[e] for e in range(5) if listed[e]), reverse=True)
        assert sorted(kept, reverse=True) == offered[:k]
        assert not (X[c] & ~np.array(listed)).any()
    assert (given_by(path, problem) == X).all()


def test_the_seed_breaks_ties_in_a_row_too_long(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([[0, 1, 1, 1]]))
    one = {"quality": np.ones((1, 4)), "capacity": np.array([1])}
    rows = [given_by(path, make_problem(**one, seed=seed)) for seed in range(60)]
    counts = np.sum(rows, axis=0)
    assert counts[0, 0] == 0 and np.min(counts[0, 1:]) >= 8  # 20 on average


def test_a_changed_file_is_read_again_and_the_same_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, TABLE)
    reads = []
    read = np.lib.format.read_array

    def counted(*args: Any, **options: Any) -> Any:
        reads.append(args)
        return read(*args, **options)

    monkeypatch.setattr(np.lib.format, "read_array", counted)
    for _ in range(3):
        first = given_by(path, make_problem())
        first[:] = False  # the caller's own: nothing that is kept changes with it
    assert len(reads) == 1
    assert (given_by(path, make_problem()) == TABLE).all()
    saved(tmp_path, ~np.eye(4, dtype=bool))
    os.utime(path, ns=(1, 1))
    assert (given_by(path, make_problem()) == ~np.eye(4, dtype=bool)).all()
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 3), bool), r"is for 3 experts, the model has 4"),
        (np.ones(4, bool), r"must be \[clients, experts\].* not of shape \(4,\)"),
        (np.zeros((0, 4), bool), r"at least one of each, not of shape \(0, 4\)"),
        (np.full((4, 4), 2), r"must hold booleans, or 0 and 1 only.* int64"),
        (np.full((4, 4), -1), r"0 and 1 only"),
        (np.full((4, 4), 0.5), r"0 and 1 only.* float64"),
        (np.full((4, 4), np.nan), r"0 and 1 only"),
        (np.ones((4, 4), complex), r"0 and 1 only.* complex128"),
        (np.full((4, 4), "1"), r"0 and 1 only"),
        (np.array([[1, 0], [0, 0], [0, 0]]), r"no expert to client number 1 \(the first is 0\)"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path: Path, array: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        given_by(saved(tmp_path, array), make_problem())
    assert "\n" not in str(caught.value) and "X.npy" in str(caught.value)


def test_a_client_without_a_row_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, TABLE)
    with pytest.raises(
        FleetError, match=r"has 4 rows, none for client number 6 \(the first is 0\)"
    ):
        given_by(path, make_problem(np.ones((2, 4)), places=np.array([6, 1])))
    with pytest.raises(FleetError, match=r"none for client number 4 "):
        given_by(path, make_problem(np.ones((5, 4))))


def as_bytes(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, X=TABLE)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"client,expert\n0,1\n",
        as_bytes(TABLE)[:-1],
        as_bytes(TABLE)[:20],
        as_bytes(np.array([[None, 1]]), allow_pickle=True),
        as_bytes(TABLE).replace(b"(4, 4), ", b"(4, 4),("),
        as_bytes(TABLE).replace(b"(4, 4)", b"(4,'')"),
        archive(),
    ],
)
def test_what_is_no_array_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "X.npy"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"X\.npy is no \.npy array of numbers") as caught:
        given_by(path, make_problem())
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.npy: No such file"):
        given_by(tmp_path / "none.npy", make_problem())
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        given_by(tmp_path, make_problem())
