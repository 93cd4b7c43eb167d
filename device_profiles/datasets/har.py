"""UCI HAR: six activities of 30 people, from a phone at the waist (Anguita et al. 2013, ESANN).

9 inertial channels at 50 Hz in windows of 128 samples (2.56 s). Neighbouring windows of one
activity overlap by half, so a *chain* of them shares raw measurements and stays on one side of any
split. The official split is by person: 21 people to train on, 9 others to test on.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_profiles.datasets.dataset import Dataset, expect_integers, expect_shape, missing
from edge_runtime.errors import DataError
from edge_runtime.shard import read_npz

PUBLISHED = (
    "Human Activity Recognition Using Smartphones (Anguita et al. 2013), UCI Machine Learning "
    "Repository, data set 240; give its zip or the unpacked folder 'UCI HAR Dataset', or an .npz"
)
CLASSES = ["WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING"]
CHANNELS = [
    f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"
]
WINDOW = 128
FOLDER = "UCI HAR Dataset"

Place = Path | zipfile.Path


@dataclass(frozen=True)
class _Windows:
    """Windows [n, 128, 9] with label, person and chain [n] each, and whether they are test data."""

    signals: NDArray[np.float32]
    label: NDArray[np.int64]
    person: NDArray[np.int64]
    chain: NDArray[np.int64]
    is_test: NDArray[np.bool_]


@dataclass(frozen=True)
class _Part:
    """The windows [n, 128, 9] of one official part, with labels from 0 and people [n]."""

    signals: NDArray[np.float32]
    label: NDArray[np.int64]
    person: NDArray[np.int64]


def load(path: str | None) -> Dataset:
    """UCI HAR as x [n, 9, 1, 128], standardised per channel over the training people."""
    if path is None:
        raise missing("har: the path to the data set", PUBLISHED)
    place = Path(path)
    if not place.exists():
        raise missing(place, PUBLISHED)
    windows = _from_npz(place) if place.suffix == ".npz" else _from_official(place)
    test = windows.is_test
    shared = np.intersect1d(windows.person[test], windows.person[~test])
    if len(shared):
        raise DataError(f"{place}: expected test people apart, got {shared.tolist()} in both parts")
    if test.all() or not test.any():
        raise DataError(f"{place}: expected training and test windows, got only one of the two")
    x_train, x_test = standardise(windows.signals[~test], windows.signals[test])
    return Dataset(
        name="har",
        x_train=x_train,
        y_train=windows.label[~test],
        x_test=x_test,
        y_test=windows.label[test],
        person_train=windows.person[~test],
        chain_train=windows.chain[~test],
        classes=list(CLASSES),
    )


def standardise(
    train: NDArray[np.float32], test: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Windows [n, 128, 9] as [n, 9, 1, 128], each channel with mean 0 and deviation 1 over `train`.

    A channel that never changes is only shifted.
    """
    mean = train.mean(axis=(0, 1), dtype=np.float64)  # (9,)
    std = train.std(axis=(0, 1), dtype=np.float64)
    std = np.where(std > 0, std, 1.0)

    def scaled(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        x = ((windows - mean) / std).astype(np.float32)
        return np.ascontiguousarray(x.transpose(0, 2, 1)[:, :, None])

    return scaled(train), scaled(test)


def chains(
    signals: NDArray[np.float32], label: NDArray[np.int64], person: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number the chains [n]: a window goes on with its chain if it starts with the half that ended.

    `signals` [n, 128, 9] are in the official order; label and person must stay the same, too.
    """
    half = WINDOW // 2
    overlap = (signals[1:, :half] == signals[:-1, half:]).all(axis=(1, 2))
    goes_on = overlap & (label[1:] == label[:-1]) & (person[1:] == person[:-1])
    return np.concatenate([[0], np.cumsum(~goes_on)]).astype(np.int64)


def _from_npz(file: Path) -> _Windows:
    """Windows from an `.npz` with arrays signals, label, subject, is_test and chain."""
    arrays = read_npz(file, ("signals", "label", "subject", "is_test", "chain"))
    signals = arrays.pop("signals")
    expect_shape(file, "signals", signals, (WINDOW, len(CHANNELS)))
    columns: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        columns[name] = expect_integers(file, name, array)
        if len(array) != len(signals):
            raise DataError(f"{file}: {name}: expected {len(signals)} values, got {len(array)}")
    return _Windows(
        signals=signals.astype(np.float32),
        label=columns["label"],
        person=columns["subject"],
        chain=columns["chain"],
        is_test=columns["is_test"] != 0,
    )


def _from_official(place: Path) -> _Windows:
    """Windows from the official text files, in a folder, a zip, or a zip in a zip."""
    with ExitStack() as stack:
        root = _find_root(_open(place, stack), stack)
        train, test = _read_part(root, "train"), _read_part(root, "test")
    signals = np.concatenate([train.signals, test.signals])
    label = np.concatenate([train.label, test.label])
    person = np.concatenate([train.person, test.person])
    is_test = np.arange(len(label)) >= len(train.label)
    return _Windows(signals, label, person, chains(signals, label, person), is_test)


def _open(place: Path, stack: ExitStack) -> Place:
    """A folder as it is, or the top of a zip file."""
    if place.is_dir():
        return place
    try:
        return zipfile.Path(stack.enter_context(zipfile.ZipFile(place)))
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{place}: expected the zip, its unpacked folder or an .npz, cannot read it ({error})"
        ) from None


def _find_root(place: Place, stack: ExitStack) -> Place:
    """The folder that holds `train` and `test`: here, one folder down, or in a zip in here."""
    for root in (place, place / FOLDER):
        if (root / "train").is_dir():
            return root
    # The archive that UCI serves today holds the original zip.
    inner = place / f"{FOLDER}.zip"
    if not inner.is_file():
        raise missing(place / FOLDER / "train", PUBLISHED)
    try:
        archive = stack.enter_context(zipfile.ZipFile(io.BytesIO(_read(inner))))
    except zipfile.BadZipFile as error:
        raise DataError(f"{inner}: expected a zip file, cannot read it ({error})") from None
    archive.filename = str(inner)  # for error messages; a zip in memory has no name
    return _find_root(zipfile.Path(archive), stack)


def _read_part(root: Place, part: str) -> _Part:
    """The files of `train` or `test`."""
    folder = root / part
    label = _read_table(folder / f"y_{part}.txt", 1, np.int64)[:, 0] - 1
    person = _read_table(folder / f"subject_{part}.txt", 1, np.int64)[:, 0]
    inertial = folder / "Inertial Signals"
    channels = [
        _read_table(inertial / f"{name}_{part}.txt", WINDOW, np.float32) for name in CHANNELS
    ]
    rows = sorted({len(column) for column in (label, person, *channels)})
    if len(rows) > 1:
        raise DataError(f"{folder}: expected files of equal length, got {rows} rows")
    return _Part(np.stack(channels, axis=-1), label, person)


def _read_table(file: Place, columns: int, dtype: type[np.generic]) -> NDArray[Any]:
    """A text file of numbers as [rows, columns]."""
    raw = _read(file)
    try:
        table = np.loadtxt(io.BytesIO(raw), dtype=dtype, ndmin=2) if raw.strip() else None
    except ValueError as error:
        raise DataError(f"{file}: expected a table of numbers ({error})") from None
    if table is None or table.shape[1] != columns:
        found = "none" if table is None else table.shape[1]
        raise DataError(f"{file}: expected {columns} numbers a row, got {found}")
    return table


def _read(file: Place) -> bytes:
    """The bytes of a file in a folder or a zip."""
    if not file.is_file():
        raise missing(file, PUBLISHED)
    try:
        return file.read_bytes()
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
        raise DataError(f"{file}: cannot read it ({error})") from None
