"""Fashion-MNIST, 28x28 grey levels, 10 kinds of clothes (Xiao et al. 2017, arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_profiles.datasets.dataset import (
    Dataset,
    Levels,
    expect_images,
    expect_integers,
    missing,
)
from edge_runtime.errors import DataError
from edge_runtime.shard import ARRAYS, read_npz

PUBLISHED = (
    "Fashion-MNIST (Xiao et al. 2017), by Zalando Research on GitHub, repository fashion-mnist; "
    "give the folder with its four idx files (.gz or unpacked), or an .npz"
)
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
# Of the 60,000 training images scaled to 0..1.
MEAN = np.float32(0.2860)
STD = np.float32(0.3530)
LEVELS = Levels.standardising(np.full((1, 1, 1), MEAN), np.full((1, 1, 1), STD))

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
UNSIGNED_BYTE = 8  # the type code of an idx file


def load(path: str | None) -> Dataset:
    """Fashion-MNIST as standardised x [n, 1, 28, 28], in the official split."""
    if path is None:
        raise missing("fashion: the path to the data set", PUBLISHED)
    place = Path(path)
    if place.is_dir():
        arrays = {name: _read_idx(place, file) for name, file in IDX_FILES.items()}
    elif place.exists():
        arrays = read_npz(place, ARRAYS)
    else:
        raise missing(place, PUBLISHED)
    return Dataset(
        name="fashion",
        x_train=_standardised(place, "x_train", arrays["x_train"]),
        y_train=expect_integers(place, "y_train", arrays["y_train"]),
        x_test=_standardised(place, "x_test", arrays["x_test"]),
        y_test=expect_integers(place, "y_test", arrays["y_test"]),
        person_train=None,
        chain_train=None,
        classes=list(CLASSES),
        levels=LEVELS,
    )


def _standardised(place: Path, name: str, images: NDArray[Any]) -> NDArray[np.float32]:
    """Grey levels 0..255 [n, 28, 28] as x [n, 1, 28, 28] with mean 0 and deviation 1."""
    expect_images(place, name, images, (28, 28))
    return LEVELS.to_x(images[:, None])


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """The array of an idx file: two zero bytes, type, axes, big-endian sizes, then the values."""
    plain, packed = folder / name, folder / f"{name}.gz"
    file = plain if plain.is_file() else packed
    if not file.is_file():
        raise missing(f"{plain} (or {packed.name})", PUBLISHED)
    raw = file.read_bytes()
    if file == packed:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file}: expected a whole gzip file ({error})") from None
    if len(raw) < 4 or raw[:3] != bytes([0, 0, UNSIGNED_BYTE]) or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{file}: expected an idx file of bytes, got {raw[:4]!r} at its start")
    axes = raw[3]
    shape = [int(size) for size in np.frombuffer(raw, dtype=">u4", count=axes, offset=4)]
    values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * axes)
    if len(values) != int(np.prod(shape, dtype=object)):
        raise DataError(f"{file}: expected values for shape {shape}, got {len(values)} bytes")
    return values.reshape(shape)
