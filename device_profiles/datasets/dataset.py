"""A data set in memory, and the checks that its loaders share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import DataError
from edge_runtime.samples import Samples


@dataclass(frozen=True, eq=False)
class Levels:
    """Images of levels 0..255 as numbers: ``x = level * scale + offset``, per channel."""

    scale: NDArray[np.float32]
    offset: NDArray[np.float32]

    @classmethod
    def standardising(cls, mean: NDArray[np.float32], std: NDArray[np.float32]) -> Levels:
        """For images whose levels divided by 255 have this mean and deviation."""
        return cls((1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32))

    def to_x(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Levels [n, *shape] as x [n, *shape]."""
        return Samples(np.ascontiguousarray(levels), self.scale, self.offset)[:]

    def of_x(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The levels that `to_x` made `x` of."""
        levels: NDArray[np.uint8] = np.rint((x - self.offset) / self.scale).astype(np.uint8)
        return levels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples to deal out to devices, and a test set that no device ever sees.

    `x_train` [n, *shape] and `x_test` [m, *shape] are normalised float32, `y_*` int64 labels that
    index `classes`. `person_train` [n] says who each training sample comes from; `chain_train` [n]
    which samples share raw measurements, and so must never be split between training and test.
    `levels` says how x came from integers 0..255, so that devices may keep those.
    Raises `DataError` when the parts do not fit each other.
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    person_train: NDArray[np.int64] | None
    chain_train: NDArray[np.int64] | None
    classes: list[str]
    levels: Levels | None = None

    def __post_init__(self) -> None:
        for part, x, y in (
            ("train", self.x_train, self.y_train),
            ("test", self.x_test, self.y_test),
        ):
            if not len(x) or x.shape[:1] != y.shape:
                raise DataError(
                    f"{self.name}: expected a {part} set with one label a sample, "
                    f"got {len(x)} samples and labels of shape {list(y.shape)}"
                )
            if y.min() < 0 or y.max() >= len(self.classes):
                raise DataError(
                    f"{self.name}: expected {part} labels 0 to {len(self.classes) - 1}, "
                    f"got {y.min()} to {y.max()}"
                )
            if not np.isfinite(x).all():
                raise DataError(f"{self.name}: expected finite {part} samples, got NaN or infinity")
        for what, ids in (("person", self.person_train), ("chain", self.chain_train)):
            if ids is not None and ids.shape != self.y_train.shape:
                raise DataError(
                    f"{self.name}: expected one {what} a training sample, "
                    f"got {list(ids.shape)} for {len(self.y_train)} samples"
                )


def missing(place: object, published: str) -> DataError:
    """The error for a file that is not there, and where its data set is published."""
    return DataError(f"{place} is missing (flexmoe downloads no data); published as: {published}")


def expect_shape(file: object, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise `DataError` unless `array` has shape [n, *shape]."""
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        wanted = ", ".join(["n", *map(str, shape)])
        raise DataError(f"{file}: {name}: expected shape [{wanted}], got {list(array.shape)}")


def expect_images(file: object, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise `DataError` unless `array` holds levels 0..255 as uint8 [n, *shape]."""
    expect_shape(file, name, array, shape)
    if array.dtype != np.uint8:
        raise DataError(f"{file}: {name}: expected levels 0..255 as uint8, got {array.dtype}")


def expect_integers(file: object, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """`array` [n] of any integer type as int64, or `DataError`."""
    expect_shape(file, name, array, ())
    if array.dtype.kind not in "iu":
        raise DataError(f"{file}: {name}: expected integers, got {array.dtype}")
    return array.astype(np.int64)
