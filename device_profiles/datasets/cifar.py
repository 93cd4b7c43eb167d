"""CIFAR-10, 32x32 colour images of 10 kinds of things (Krizhevsky 2009)."""

from __future__ import annotations

import io
import pickle
import tarfile
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
    "CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images), "
    "University of Toronto, Alex Krizhevsky's page; give 'CIFAR-10 python version' "
    "(cifar-10-python.tar.gz) or its unpacked folder, or an .npz"
)
CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
# Of red, green and blue over the 50,000 training images scaled to 0..1.
MEAN = np.array([0.4914, 0.4822, 0.4465], dtype=np.float32)[:, None, None]
STD = np.array([0.2470, 0.2435, 0.2616], dtype=np.float32)[:, None, None]
LEVELS = Levels.standardising(MEAN, STD)

FOLDER = "cifar-10-batches-py"
TRAIN_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
TEST_BATCH = "test_batch"
IMAGE = (3, 32, 32)


def load(path: str | None) -> Dataset:
    """CIFAR-10 as standardised x [n, 3, 32, 32], in the official split."""
    if path is None:
        raise missing("cifar: the path to the data set", PUBLISHED)
    place = Path(path)
    if not place.exists():
        raise missing(place, PUBLISHED)
    if (place / FOLDER).is_dir():
        place = place / FOLDER
    arrays = _from_npz(place) if place.suffix == ".npz" else _from_batches(place)
    return Dataset(
        name="cifar",
        x_train=LEVELS.to_x(arrays["x_train"]),
        y_train=expect_integers(place, "y_train", arrays["y_train"]),
        x_test=LEVELS.to_x(arrays["x_test"]),
        y_test=expect_integers(place, "y_test", arrays["y_test"]),
        person_train=None,
        chain_train=None,
        classes=list(CLASSES),
        levels=LEVELS,
    )


def _from_npz(file: Path) -> dict[str, NDArray[Any]]:
    """The four arrays of an `.npz` with images [n, 32, 32, 3]."""
    arrays = read_npz(file, ARRAYS)
    for name in ("x_train", "x_test"):
        expect_images(file, name, arrays[name], (32, 32, 3))
        arrays[name] = arrays[name].transpose(0, 3, 1, 2)
    return arrays


def _from_batches(place: Path) -> dict[str, NDArray[Any]]:
    """The four arrays from the official pickled batches, in a folder or a tar file."""
    files = _read_folder(place) if place.is_dir() else _read_tar(place)
    batches = {}
    for name in [*TRAIN_BATCHES, TEST_BATCH]:
        if name not in files:
            raise missing(place / name, PUBLISHED)
        batches[name] = _unpickle(place / name, files[name])
    train = [batches[name] for name in TRAIN_BATCHES]
    return {
        "x_train": np.concatenate([x for x, _ in train]),
        "y_train": np.concatenate([y for _, y in train]),
        "x_test": batches[TEST_BATCH][0],
        "y_test": batches[TEST_BATCH][1],
    }


def _read_folder(folder: Path) -> dict[str, bytes]:
    """The files in `folder` that are batches."""
    files = [folder / name for name in [*TRAIN_BATCHES, TEST_BATCH]]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def _read_tar(file: Path) -> dict[str, bytes]:
    """The batches in a tar file, in one pass, with nothing written to disk."""
    wanted = {f"{FOLDER}/{name}": name for name in [*TRAIN_BATCHES, TEST_BATCH]}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name in wanted else None
                if stream is not None:
                    found[wanted[member.name]] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file}: expected cifar-10-python.tar.gz or an .npz, cannot read it ({error})"
        ) from None
    return found


class _PickledArray:
    """Takes the place of a numpy array in a pickle: keeps its state and runs none of its code."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, raw = state
        if dtype.code not in (b"u1", "u1") or column_major:
            raise ValueError("expected unsigned bytes in row order")
        self.values = np.frombuffer(raw, dtype=np.uint8).reshape(shape)


class _PickledDtype:
    """Takes the place of a numpy dtype in a pickle: keeps its code."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing to single bytes."""


STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
}


class _BatchUnpickler(pickle.Unpickler):
    """Reads plain containers and arrays of bytes, and refuses to name anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`, or `UnpicklingError`."""
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR-10 batch")
        return STAND_INS[module, name]


def _unpickle(file: Path, raw: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 3, 32, 32] and labels [n] of one official batch."""
    try:
        # A damaged or hostile pickle can raise anything, and all of it means the same here.
        batch = _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()
        x = batch[b"data"].values.reshape(-1, *IMAGE)
        y = np.array(batch[b"labels"], dtype=np.int64)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{file}: expected an official CIFAR-10 batch ({why})") from None
    if len(x) != len(y):
        raise DataError(f"{file}: expected one label an image, got {len(y)} for {len(x)}")
    return x, y
