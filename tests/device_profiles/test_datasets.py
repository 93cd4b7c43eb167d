"""What all data sets share, and the digits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_profiles.datasets import Dataset, load
from edge_runtime.errors import ConfigError, DataError

Load = Callable[[str, Path | None, tuple[int, ...]], Dataset]


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="expected one of digits, har, cifar, fashion, got 'mni'"):
        load("mni")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("har", "UCI Machine Learning Repository, data set 240"),
        ("cifar", "University of Toronto"),
        ("fashion", "Zalando Research on GitHub, repository fashion-mnist"),
    ],
)
def test_a_missing_file_is_named_with_where_it_is_published(
    name: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=says):
        load(name, None)
    with pytest.raises(DataError, match=f"no-such-place is missing.*{says}"):
        load(name, str(tmp_path / "no-such-place"))
    with pytest.raises(DataError, match=f"{tmp_path}.+ is missing.*{says}"):
        load(name, str(tmp_path))
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"junk: expected .*npz.*"):
        load(name, str(tmp_path / "junk"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"y_train": np.array([0, 2])}, "expected train labels 0 to 1, got 0 to 2"),
        ({"y_test": np.array([0, 1])}, "expected a test set with one label a sample"),
        ({"x_test": np.zeros((0, 3)), "y_test": np.zeros(0)}, "expected a test set"),
        ({"x_train": np.full((2, 3), np.nan)}, "expected finite train samples"),
        ({"chain_train": np.zeros(3)}, "expected one chain a training sample"),
        ({"person_train": np.zeros(1)}, "expected one person a training sample"),
    ],
)
def test_parts_that_do_not_fit(change: dict[str, Any], says: str) -> None:
    parts: dict[str, Any] = {
        "x_train": np.zeros((2, 3), np.float32),
        "y_train": np.array([0, 1]),
        "x_test": np.zeros((1, 3), np.float32),
        "y_test": np.array([1]),
        "person_train": None,
        "chain_train": None,
    }
    assert Dataset(name="toy", classes=["a", "b"], **parts).classes == ["a", "b"]
    with pytest.raises(DataError, match=f"toy: {says}"):
        Dataset(name="toy", classes=["a", "b"], **{**parts, **change})


def test_digits(load_checked: Load) -> None:
    data = load_checked("digits", None, (64,))
    assert len(data.y_train) + len(data.y_test) == 1797
    assert data.x_train.min() == 0 and data.x_train.max() == 1
    train, test = np.bincount(data.y_train), np.bincount(data.y_test)
    np.testing.assert_array_equal(test, np.round(0.2 * (train + test)))
    np.testing.assert_array_equal(load("digits").x_test, data.x_test)
    assert data.classes == list("0123456789")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"flexmoe\[server\]"):
        load("digits")


def test_digits_take_no_path() -> None:
    with pytest.raises(DataError, match="expected no path, got here"):
        load("digits", "here")
