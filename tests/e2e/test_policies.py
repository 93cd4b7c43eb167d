"""Each way to assign and to choose who takes part, once through the real processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.processes import Workshop, read_report, settings

EXPERTS, K, ROUNDS = 8, 2, 2
NAMES = ["device-00", "device-01"]
SMALL: dict[str, object] = {
    "data.devices": len(NAMES),
    "data.partition": "iid",
    "rounds": ROUNDS,
    "train.epochs": 1,
}
TABLE = np.eye(EXPERTS, dtype=bool)[[5, 2]] | np.eye(EXPERTS, dtype=bool)[[1, 6]]

Rounds = list[dict[str, Any]]


def took_turns(rounds: Rounds) -> None:
    """Desirability with half of the two devices: the second round has other experts, too."""
    assert [entry["participants"] for entry in rounds] == [1, 1]
    (first, others), (second, more) = (next(iter(r["assignments"].items())) for r in rounds)
    assert {first, second} == set(NAMES) and not set(others) & set(more)
    assert all(entry["gap"] is None for entry in rounds)


def rolled(rounds: Rounds) -> None:
    """Neighbours on a ring, which turns by one a round."""
    assert [entry["assignments"] for entry in rounds] == [
        {"device-00": [0, 1], "device-01": [2, 3]},
        {"device-00": [1, 2], "device-01": [3, 4]},
    ]


def kept(rounds: Rounds) -> None:
    """The same from the file in every round."""
    for entry in rounds:
        assert entry["assignments"] == {"device-00": [1, 5], "device-01": [2, 6]}


def balanced_both(rounds: Rounds) -> None:
    """Each of the four pairs of two rounds has two experts of its own, and H is even."""
    assert {entry["solver"] for entry in rounds} == {"prices"}
    assert rounds[-1]["load_cv"] < 0.01 < rounds[-1]["routed_cv"]
    assert all(entry["least_violation"] is not None for entry in rounds)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"assignment.policy": "desirability", "participation.fraction": 0.5}, took_turns),
        ({"assignment.policy": "rolling", "train.balance_loss": 0.1}, rolled),
        ({"assignment.policy": "fixed", "assignment.file": "{file}"}, kept),
        ({"assignment.balance": "both", "assignment.solver": "prices"}, balanced_both),
    ],
    ids=["desirability-turns", "rolling-balance-term", "fixed", "both"],
)
def test_two_rounds(
    workshop: Workshop,
    experiment: Path,
    tmp_path: Path,
    changes: Mapping[str, object],
    check: Callable[[Rounds], None],
) -> None:
    np.save(tmp_path / "X.npy", TABLE)
    options = {key: str(value).format(file=tmp_path / "X.npy") for key, value in changes.items()}
    # Other tests count the programs in the common folder. The term changes the training program.
    plain = {path.name for path in workshop.cache.glob("*.pte")}
    workshop.cache = Path(shutil.copytree(workshop.cache, tmp_path / "programs"))
    end = workshop.call("run", experiment, *settings({**SMALL, **options}), out=tmp_path / "out")
    assert (end.code, end.err) == (0, "")
    assert workshop.left() == []
    exported = {path.name for path in workshop.cache.glob("*.pte")} - plain
    assert not plain or len(exported) == ("train.balance_loss" in options)
    report = read_report(tmp_path / "out")
    assert report["policy"] == options.get("assignment.policy", "flex_moe")
    assert len(report["rounds"]) == ROUNDS
    for entry in report["rounds"]:
        assert entry["answered"] == entry["participants"] > 0 and entry["left_out"] == {}
        assert all(len(experts) == K for experts in entry["assignments"].values())
        assert entry["violated_samples"] >= 0 and entry["routed_cv"] >= 0
    check(report["rounds"])
