"""UCI HAR, from small files in the official layouts, and the real one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_profiles.datasets import Dataset, har, load
from edge_runtime.errors import DataError

Load = Callable[[str, Path | None, tuple[int, ...]], Dataset]

SHAPE = (9, 1, 128)

# Two chains of person 1 (same activity, no overlap between them), then another activity, then
# person 3: (person, label from 1, chain, windows). Test people are 2 and 4.
HAR_TRAIN = [(1, 1, 0, 3), (1, 1, 1, 2), (1, 5, 2, 1), (3, 5, 3, 2)]
HAR_TEST = [(2, 1, 4, 2), (4, 6, 5, 2)]


def har_windows(plan: list[tuple[int, int, int, int]], seed: int) -> np.ndarray:
    """Windows [n, 128, 9] cut with half an overlap from one random recording a chain."""
    rng = np.random.default_rng(seed)
    windows = []
    for *_, count in plan:
        recording = rng.normal(2, 3, (64 * (count + 1), 9)).round(4)
        windows += [recording[64 * i : 64 * i + 128] for i in range(count)]
    return np.array(windows)


def column(plan: list[tuple[int, int, int, int]], index: int) -> np.ndarray:
    return np.repeat([row[index] for row in plan], [row[3] for row in plan])


def table(values: np.ndarray) -> str:
    """Numbers as the official text files write them."""
    return "".join("".join(f" {value: .7e}" for value in row) + "\n" for row in values)


@pytest.fixture
def har_files() -> dict[str, str]:
    """The official files by their names below 'UCI HAR Dataset/'."""
    files = {"activity_labels.txt": "1 WALKING\n"}
    for part, plan, seed in (("train", HAR_TRAIN, 1), ("test", HAR_TEST, 2)):
        windows = har_windows(plan, seed)
        files[f"{part}/y_{part}.txt"] = "".join(f"{v}\n" for v in column(plan, 1))
        files[f"{part}/subject_{part}.txt"] = "".join(f"{v}\n" for v in column(plan, 0))
        for index, name in enumerate(har.CHANNELS):
            path = f"{part}/Inertial Signals/{name}_{part}.txt"
            files[path] = table(windows[:, :, index])
    return files


def unpack(files: dict[str, str], folder: Path) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def pack(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("__MACOSX/._UCI HAR Dataset", "x")
        for name, text in files.items():
            archive.writestr(f"UCI HAR Dataset/{name}", text)
    return stream.getvalue()


def as_folder(files: dict[str, str], place: Path) -> Path:
    return unpack(files, place / "UCI HAR Dataset")


def as_parent_folder(files: dict[str, str], place: Path) -> Path:
    return as_folder(files, place).parent


def as_zip(files: dict[str, str], place: Path) -> Path:
    (place / "UCI HAR Dataset.zip").write_bytes(pack(files))
    return place / "UCI HAR Dataset.zip"


def as_outer_zip(files: dict[str, str], place: Path) -> Path:
    path = place / "human+activity+recognition+using+smartphones.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("UCI HAR Dataset.zip", pack(files))
        archive.writestr("UCI HAR Dataset.names", "x")
    return path


@pytest.mark.parametrize("layout", [as_folder, as_parent_folder, as_zip, as_outer_zip])
def test_har_official_files(
    layout: Callable[[dict[str, str], Path], Path],
    har_files: dict[str, str],
    tmp_path: Path,
    load_checked: Load,
) -> None:
    data = load_checked("har", layout(har_files, tmp_path), SHAPE)
    assert data.person_train is not None and data.chain_train is not None
    np.testing.assert_array_equal(data.y_train, column(HAR_TRAIN, 1) - 1)
    np.testing.assert_array_equal(data.y_test, column(HAR_TEST, 1) - 1)
    np.testing.assert_array_equal(data.person_train, column(HAR_TRAIN, 0))
    np.testing.assert_array_equal(data.chain_train, column(HAR_TRAIN, 2))
    train, test = har_windows(HAR_TRAIN, 1), har_windows(HAR_TEST, 2)
    for channel in range(9):
        mean, std = train[:, :, channel].mean(), train[:, :, channel].std()
        for x, windows in ((data.x_train, train), (data.x_test, test)):
            want = (windows[:, :, channel] - mean) / std
            np.testing.assert_allclose(x[:, channel, 0], want, atol=1e-5)


def test_a_chain_ends_with_its_activity_its_person_or_its_overlap() -> None:
    signals = har_windows([(1, 1, 0, 4)], seed=0)
    one, two = np.array([1, 1, 1, 1]), np.array([1, 1, 2, 2])
    assert har.chains(signals, one, one).tolist() == [0, 0, 0, 0]
    assert har.chains(signals, two, one).tolist() == [0, 0, 1, 1]
    assert har.chains(signals, one, two).tolist() == [0, 0, 1, 1]
    signals[3, 20, 5] += 1  # one channel, in the half that window 2 ends with
    assert har.chains(signals, one, one).tolist() == [0, 0, 0, 1]


def test_har_npz_says_the_same_as_the_official_files(
    har_files: dict[str, str], tmp_path: Path
) -> None:
    plan = HAR_TRAIN + HAR_TEST
    np.savez(
        tmp_path / "har.npz",
        signals=np.concatenate([har_windows(HAR_TRAIN, 1), har_windows(HAR_TEST, 2)]),
        label=column(plan, 1).astype(np.uint8) - 1,
        subject=column(plan, 0).astype(np.uint8),
        is_test=np.arange(12) >= 8,
        chain=column(plan, 2).astype(np.uint16),
    )
    with pytest.raises(DataError, match="is_test: expected integers, got bool"):
        load("har", str(tmp_path / "har.npz"))
    arrays = dict(np.load(tmp_path / "har.npz"))
    np.savez(tmp_path / "har.npz", **{**arrays, "is_test": arrays["is_test"].astype(np.uint8)})
    one = load("har", str(tmp_path / "har.npz"))
    two = load("har", str(as_folder(har_files, tmp_path)))
    np.testing.assert_allclose(one.x_test, two.x_test, atol=1e-5)
    for name in ("y_train", "y_test", "person_train", "chain_train"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("train/y_train.txt", None, "y_train.txt is missing"),
        ("test/Inertial Signals/body_gyro_y_test.txt", None, "body_gyro_y_test.txt is missing"),
        ("train/y_train.txt", "1\n2\n", r"train/?: expected files of equal length, got \[2, 8\]"),
        ("train/y_train.txt", "1.5\n" * 8, "y_train.txt: expected a table of numbers"),
        ("train/y_train.txt", "9\n" * 8, "har: expected train labels 0 to 5, got 8 to 8"),
        ("train/y_train.txt", "", "y_train.txt: expected 1 numbers a row, got none"),
        ("test/subject_test.txt", "1 2\n" * 4, "subject_test.txt: expected 1 numbers a row, got 2"),
        ("test/subject_test.txt", "2\n2\n3\n3\n", r"expected test people apart, got \[3\]"),
        (
            "test/Inertial Signals/total_acc_x_test.txt",
            "nan " * 128 + "\n" + "0 " * 128 + "\n" + "0 " * 128 + "\n" + "0 " * 128,
            "har: expected finite test samples",
        ),
    ],
)
def test_har_official_files_with_defects(
    name: str, text: str | None, says: str, har_files: dict[str, str], tmp_path: Path
) -> None:
    if text is None:
        del har_files[name]
    else:
        har_files[name] = text
    for layout in (as_folder, as_outer_zip):
        with pytest.raises(DataError, match=says):
            load("har", str(layout(har_files, tmp_path)))


def test_har_zip_with_damage(har_files: dict[str, str], tmp_path: Path) -> None:
    path = as_zip(har_files, tmp_path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 4] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"UCI HAR Dataset.zip.*cannot read it"):
        load("har", str(path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"signals": np.zeros((4, 9, 128))}, r"signals: expected shape \[n, 128, 9\]"),
        ({"chain": np.arange(3)}, "chain: expected 4 values, got 3"),
        ({"is_test": np.zeros(4, int)}, "expected training and test windows"),
    ],
)
def test_har_npz_with_defects(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "signals": np.zeros((4, 128, 9)),
        "label": np.zeros(4, int),
        "subject": np.arange(4),
        "is_test": np.array([0, 0, 0, 1]),
        "chain": np.arange(4),
    }
    np.savez(tmp_path / "har.npz", **arrays)
    flat = load("har", str(tmp_path / "har.npz"))  # channels that never change divide by 1, not 0
    assert not flat.x_train.any()
    np.savez(tmp_path / "har.npz", **{**arrays, **change})
    with pytest.raises(DataError, match=rf"har.npz: {says}"):
        load("har", str(tmp_path / "har.npz"))


def test_har_real(load_checked: Load, real_file: Callable[[str], Path]) -> None:
    data = load_checked("har", real_file("uci_har.npz"), SHAPE)
    assert (len(data.x_train), len(data.x_test)) == (7352, 2947)
    assert data.person_train is not None and len(np.unique(data.person_train)) == 21
    np.testing.assert_allclose(data.x_train.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(data.x_train.std(axis=(0, 2, 3)), 1, atol=1e-5)


def test_har_chains_derived_from_real_windows_are_those_of_the_file(
    real_file: Callable[[str], Path],
) -> None:
    with np.load(real_file("uci_har.npz")) as file:
        signals, label, person, chain = (
            file[name] for name in ("signals", "label", "subject", "chain")
        )
    np.testing.assert_array_equal(har.chains(signals, label, person), chain)
