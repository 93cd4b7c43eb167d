"""A device's own data: a training part and a held-out part, in one `.npz` file of four arrays.

| array   | shape       | kept as | in the file                                         |
|---------|-------------|---------|-----------------------------------------------------|
| x_train | [n, *shape] | float32 | any float or integer type whose values float32 holds |
| y_train | [n]         | int64   | any integer type                                    |
| x_test  | [m, *shape] | float32 | as x_train; m may be 0                              |
| y_test  | [m]         | int64   | as y_train                                          |

With two more arrays, `scale` and `offset` (float32, broadcast to `shape`), x_train and x_test are
uint8, are kept so, and stand for ``x * scale + offset``: a quarter of the memory and of the file.

Files are read without pickles, so a shard from a stranger can at worst be refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import DataError
from edge_runtime.samples import Samples

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
SCALING = ("scale", "offset")
LARGEST_INTEGER = 2**24  # float32 has 24 bits of precision: it holds every integer up to here
LARGEST_SCALING = 1e30  # of a scale or an offset: what it makes of a sample stays within float32


@dataclass(frozen=True, eq=False)
class Shard:
    """One device's samples, checked and converted on construction (see the table above).

    Raises `DataError` in one line that names the array, what was expected and what came.
    """

    x_train: NDArray[Any]
    y_train: NDArray[np.int64]
    x_test: NDArray[Any]
    y_test: NDArray[np.int64]
    scale: NDArray[np.float32] | None = None
    offset: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        samples = _samples if self.scale is None and self.offset is None else _levels
        for part in ("train", "test"):
            x = samples(f"x_{part}", getattr(self, f"x_{part}"))
            y = _labels(f"y_{part}", getattr(self, f"y_{part}"))
            if len(x) != len(y):
                raise DataError(
                    f"x_{part} and y_{part}: expected equal lengths, got {len(x)} and {len(y)}"
                )
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", y)
        if not len(self.x_train):
            raise DataError("x_train: expected at least one training sample, got none")
        if self.x_test.shape[1:] != self.shape:
            raise DataError(
                f"x_test: expected samples of shape {list(self.shape)} as in x_train, "
                f"got {list(self.x_test.shape[1:])}"
            )
        if samples is _levels:
            for name in SCALING:
                object.__setattr__(self, name, _scaling(name, getattr(self, name), self.shape))

    @property
    def train(self) -> Samples:
        """The training samples, drawn as float32."""
        return Samples(self.x_train, self.scale, self.offset)

    @property
    def test(self) -> Samples:
        """The held-out samples, drawn as float32."""
        return Samples(self.x_test, self.scale, self.offset)

    @property
    def samples(self) -> int:
        """How many training samples there are."""
        return len(self.x_train)

    @property
    def test_samples(self) -> int:
        """How many held-out samples there are."""
        return len(self.x_test)

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape."""
        return self.x_train.shape[1:]

    @property
    def labels(self) -> int:
        """The largest label + 1, over both parts."""
        return 1 + max(int(y.max()) for y in (self.y_train, self.y_test) if len(y))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Shard:
        """Read and check a shard; every defect is a `DataError` that names the file."""
        arrays = read_npz(path, ARRAYS, SCALING)
        try:
            return cls(**arrays)
        except DataError as defect:
            raise DataError(f"{os.fspath(path)}: {defect}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the shard to exactly `path`; equal shards give equal bytes."""
        try:
            # An open file, because savez would append ".npz" to a name without it.
            with open(path, "wb") as file:
                names = ARRAYS if self.scale is None else ARRAYS + SCALING
                np.savez(file, **{name: getattr(self, name) for name in names})
        except OSError as error:
            raise DataError(f"{os.fspath(path)}: cannot write the shard ({error})") from None


def read_npz(
    path: str | os.PathLike[str], names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read the arrays called `names`, and of `optional` those that are there, without pickles.

    Raises `DataError` when the file is missing or no `.npz`, or an array is missing or damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: expected an .npz file, found no such file; check the path")
    arrays: dict[str, NDArray[Any]] = {}
    with ExitStack() as stack:
        # Damage shows itself in many ways (ValueError, BadZipFile, zlib.error, EOFError,
        # MemoryError from a made-up size, ...), and here all of them mean the same.
        try:
            # Opened here, because np.load leaves its own file open when it fails.
            archive = np.load(stack.enter_context(file.open("rb")), allow_pickle=False)
        except Exception as error:
            raise DataError(f"{file}: expected an .npz file, but {_why(error)}") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{file}: expected an .npz file with named arrays, got a single array")
        stack.enter_context(archive)
        for name in (*names, *(name for name in optional if name in archive.files)):
            if name not in archive.files:
                found = ", ".join(archive.files) or "none"
                raise DataError(f"{file}: expected an array {name}, found {found}")
            try:
                arrays[name] = archive[name]
            except Exception as error:
                raise DataError(f"{file}: {name}: cannot read it ({_why(error)})") from None
            if not isinstance(arrays[name], np.ndarray):
                raise DataError(f"{file}: {name}: expected an array, got other bytes")
    return arrays


def _why(error: Exception) -> str:
    """An error of another library on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _samples(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """`array` as finite float32 of shape [n, *shape]."""
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name}: expected float or integer values, got {array.dtype}")
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise DataError(f"{name}: expected shape [samples, *shape], got {list(array.shape)}")
    if array.dtype.kind != "f" and array.size:
        low, high = int(array.min()), int(array.max())
        if max(-low, high) > LARGEST_INTEGER:
            raise DataError(
                f"{name}: expected integers up to {LARGEST_INTEGER}, which float32 holds exactly, "
                f"got {low} to {high}"
            )
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(x).all():
        came = f"{array.dtype} beyond float32" if np.isfinite(array).all() else "NaN or infinity"
        raise DataError(f"{name}: expected finite values, got {came}")
    return x


def _levels(name: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    """`array` as uint8 of shape [n, *shape]: samples that come with a scale and an offset."""
    if array.dtype != np.uint8:
        raise DataError(f"{name}: expected uint8 beside {' and '.join(SCALING)}, got {array.dtype}")
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise DataError(f"{name}: expected shape [samples, *shape], got {list(array.shape)}")
    return np.ascontiguousarray(array)


def _scaling(name: str, array: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The scale or the offset of `_levels`: finite float32 that broadcasts to `shape`."""
    if array is None:
        raise DataError(f"{name}: expected it beside the other of {' and '.join(SCALING)}")
    if array.dtype.kind != "f":
        raise DataError(f"{name}: expected float values, got {array.dtype}")
    try:
        np.broadcast_to(array, shape)
    except ValueError:
        raise DataError(
            f"{name}: expected a shape that broadcasts to {list(shape)}, got {list(array.shape)}"
        ) from None
    largest = float(np.abs(array).max())
    if not largest <= LARGEST_SCALING:
        raise DataError(
            f"{name}: expected finite values up to {LARGEST_SCALING:g}, got {largest:g}"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _labels(name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """`array` as int64 labels of shape [n], none negative."""
    if array.dtype.kind not in "iu":
        raise DataError(f"{name}: expected integer labels, got {array.dtype}")
    if array.ndim != 1:
        raise DataError(f"{name}: expected shape [samples], got {list(array.shape)}")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= np.iinfo(np.int64).max):
        worst = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise DataError(f"{name}: expected labels 0, 1, 2, ..., got {worst}")
    return np.ascontiguousarray(array, dtype=np.int64)
