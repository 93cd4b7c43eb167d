"""Fashion-MNIST, from small files in the official layouts, and the real one."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_profiles.datasets import Dataset, fashion, load
from edge_runtime.errors import DataError

Load = Callable[[str, Path | None, tuple[int, ...]], Dataset]

SHAPE = (1, 28, 28)


def idx(values: np.ndarray) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


@pytest.fixture
def fashion_arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (300, 28, 28)).astype(np.uint8),
        "y_train": (np.arange(300) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 256, (5, 28, 28)).astype(np.uint8),
        "y_test": np.array([9, 8, 7, 6, 5], np.uint8),
    }


def write_idx(arrays: dict[str, np.ndarray], folder: Path, packed: bool) -> None:
    for name, array in arrays.items():
        file = fashion.IDX_FILES[name]
        if packed:
            (folder / f"{file}.gz").write_bytes(gzip.compress(idx(array), 1))
        else:
            (folder / file).write_bytes(idx(array))


@pytest.mark.parametrize("layout", ["idx", "gz", "npz"])
def test_fashion_official_files(
    layout: str, fashion_arrays: dict[str, Any], tmp_path: Path, load_checked: Load
) -> None:
    path = tmp_path
    if layout == "npz":
        path = tmp_path / "fashion.npz"
        np.savez(path, **fashion_arrays)
    else:
        write_idx(fashion_arrays, tmp_path, packed=layout == "gz")
    data = load_checked("fashion", path, SHAPE)
    for part in ("train", "test"):
        want = (fashion_arrays[f"x_{part}"] / 255 - 0.2860) / 0.3530
        np.testing.assert_allclose(getattr(data, f"x_{part}")[:, 0], want, atol=1e-5)
        np.testing.assert_array_equal(getattr(data, f"y_{part}"), fashion_arrays[f"y_{part}"])


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("t10k-labels-idx1-ubyte", None, r"t10k-labels-idx1-ubyte \(or .*gz\) is missing"),
        ("t10k-labels-idx1-ubyte", b"\0\0", "expected an idx file of bytes"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x02\0\0\0\x05", "expected an idx file of bytes"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x0d\x01\0\0\0\0", "expected an idx file of bytes"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(5))[:-1], r"values for shape \[5\], got 4 bytes"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(4)), "one label a sample, got 5 samples"),
        ("t10k-labels-idx1-ubyte", idx(np.full(5, 10)), "expected test labels 0 to 9"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((5, 28, 27))), r"expected shape \[n, 28, 28\]"),
        (
            "t10k-images-idx3-ubyte",
            b"\0\0\x08\x03" + b"\xff" * 12,
            r"values for shape \[4294967295",
        ),
    ],
)
def test_fashion_files_with_defects(
    name: str, raw: bytes | None, says: str, fashion_arrays: dict[str, Any], tmp_path: Path
) -> None:
    write_idx(fashion_arrays, tmp_path, packed=False)
    if raw is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=says):
        load("fashion", str(tmp_path))


def test_fashion_gz_cut_short(fashion_arrays: dict[str, Any], tmp_path: Path) -> None:
    write_idx(fashion_arrays, tmp_path, packed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: expected a whole gzip file"):
        load("fashion", str(tmp_path))


def test_fashion_real(load_checked: Load, real_file: Callable[[str], Path]) -> None:
    data = load_checked("fashion", real_file("fashion_mnist.npz"), SHAPE)
    assert abs(data.x_train.mean()) < 0.01 and abs(data.x_train.std() - 1) < 0.01
    assert np.bincount(data.y_train).tolist() == [6000] * 10
