"""Fixtures that the data sets' tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_profiles.datasets import Dataset, load

BESIDE_THE_REPOSITORY = Path(__file__).parents[2].parent / "shared" / "data"
DATA = Path(os.environ.get("FLEXMOE_DATA", BESIDE_THE_REPOSITORY))


@pytest.fixture(scope="session")
def real_file() -> Callable[[str], Path]:
    """Gives the path of a real data set, or skips the test."""

    def get(name: str) -> Path:
        if not (DATA / name).is_file():
            pytest.skip(f"{name} is not at hand; set FLEXMOE_DATA to the folder that holds it")
        return DATA / name

    return get


@pytest.fixture(scope="session")
def load_checked() -> Callable[[str, Path | None, tuple[int, ...]], Dataset]:
    """Loads a data set by name and path, and checks types and the shape of a sample."""

    def get(name: str, path: Path | None, shape: tuple[int, ...]) -> Dataset:
        data = load(name, None if path is None else str(path))
        assert data.x_train.dtype == data.x_test.dtype == np.float32
        assert data.y_train.dtype == data.y_test.dtype == np.int64
        assert data.x_train.shape[1:] == data.x_test.shape[1:] == shape
        assert data.x_train.flags.c_contiguous and data.x_test.flags.c_contiguous
        return data

    return get
