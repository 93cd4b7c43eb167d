"""CIFAR-10, from small files in the official layouts, and the real one."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_profiles.datasets import Dataset, cifar, load
from edge_runtime.errors import DataError

Load = Callable[[str, Path | None, tuple[int, ...]], Dataset]

SHAPE = (3, 32, 32)


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2's cPickle and numpy wrote it: protocol 2, byte strings, numpy.core."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    rows, width = images.shape
    raw = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text("b") + b"tR"
        b"(K\x01M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", width) + b"\x86"
        b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = text("batch_label") + text("a batch") + text("labels") + numbers + text("data") + array
    return b"\x80\x02}(" + items + b"u."


@pytest.fixture
def cifar_batches() -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    """The official files, and the images [12, 3, 32, 32] and labels in them, 2 a file."""
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32)).astype(np.uint8)
    labels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 0]
    files = {"batches.meta": pickle.dumps({}), "readme.html": b""}
    for number, name in enumerate([*cifar.TRAIN_BATCHES, cifar.TEST_BATCH]):
        two = slice(2 * number, 2 * number + 2)
        files[name] = python2_batch(images[two].reshape(2, -1), labels[two])
    return files, images, labels


def write_batches(files: dict[str, bytes], place: Path, layout: str) -> Path:
    if layout == "tar":
        path = place / "cifar-10-python.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, raw in files.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        return path
    folder = place / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder if layout == "folder" else place


def check_cifar(data: Dataset, images: np.ndarray, labels: list[int]) -> None:
    np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_test]), labels)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    for colour in range(3):
        want = (images[:, colour] / 255 - mean[colour]) / std[colour]
        x = np.concatenate([data.x_train, data.x_test])[:, colour]
        np.testing.assert_allclose(x, want, atol=1e-5)


@pytest.mark.parametrize("layout", ["folder", "parent", "tar"])
def test_cifar_official_batches(
    layout: str, cifar_batches: Any, tmp_path: Path, load_checked: Load
) -> None:
    files, images, labels = cifar_batches
    # The hand-made pickle is what numpy's own reader takes it for.
    first = pickle.loads(files["data_batch_1"], encoding="bytes")
    np.testing.assert_array_equal(first[b"data"], images[:2].reshape(2, -1))
    data = load_checked("cifar", write_batches(files, tmp_path, layout), SHAPE)
    assert (len(data.x_train), len(data.x_test)) == (10, 2)
    check_cifar(data, images, labels)


def test_cifar_npz(cifar_batches: Any, tmp_path: Path, load_checked: Load) -> None:
    _, images, labels = cifar_batches
    arrays = {
        "x_train": images[:10].transpose(0, 2, 3, 1),
        "y_train": np.array(labels[:10], np.uint8),
        "x_test": images[10:].transpose(0, 2, 3, 1),
        "y_test": np.array(labels[10:], np.uint8),
    }
    path = tmp_path / "cifar.npz"
    np.savez(path, **arrays)
    check_cifar(load_checked("cifar", path, SHAPE), images, labels)
    np.savez(path, **{**arrays, "x_test": images[10:]})
    with pytest.raises(DataError, match=r"x_test: expected shape \[n, 32, 32, 3\]"):
        load("cifar", str(path))
    np.savez(path, **{**arrays, "x_train": arrays["x_train"] / 255})
    with pytest.raises(DataError, match=r"x_train: expected levels 0..255 as uint8, got float64"):
        load("cifar", str(path))


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_cifar_batches_with_defects(layout: str, cifar_batches: Any, tmp_path: Path) -> None:
    files, images, _ = cifar_batches
    marker = tmp_path / "code-was-run"
    rows = images[:2].reshape(2, -1)
    for raw, says in [
        (pickle.dumps(_Evil(marker), protocol=2), "mkdir does not belong in a CIFAR-10 batch"),
        (files["data_batch_3"][:-9], "expected an official CIFAR-10 batch"),
        (pickle.dumps({b"data": 3, b"labels": [1]}, protocol=3), "expected an official"),
        (python2_batch(rows, [1]), "expected one label an image, got 1 for 2"),
        (python2_batch(rows[:, :-1], [1, 2]), "expected an official"),
        (files["data_batch_3"].replace(b"U\x02u1", b"U\x02i4"), "expected unsigned bytes"),
        (files["data_batch_3"].replace(b"tb\x89T", b"tb\x88T"), "expected .* in row order"),
    ]:
        path = write_batches({**files, "data_batch_3": raw}, tmp_path, layout)
        with pytest.raises(DataError, match=f"data_batch_3: .*{says}"):
            load("cifar", str(path))
    assert not marker.exists()


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_cifar_batch_missing(layout: str, cifar_batches: Any, tmp_path: Path) -> None:
    files, *_ = cifar_batches
    del files["data_batch_4"]
    with pytest.raises(DataError, match="data_batch_4 is missing"):
        load("cifar", str(write_batches(files, tmp_path, layout)))


def test_cifar_tar_cut_short(cifar_batches: Any, tmp_path: Path) -> None:
    path = write_batches(cifar_batches[0], tmp_path, "tar")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"expected cifar-10-python.tar.gz or an .npz"):
        load("cifar", str(path))


def test_cifar_real(load_checked: Load, real_file: Callable[[str], Path]) -> None:
    data = load_checked("cifar", real_file("cifar10_small.npz"), SHAPE)
    np.testing.assert_allclose(data.x_train.mean(axis=(0, 2, 3)), 0, atol=0.02)
    np.testing.assert_allclose(data.x_train.std(axis=(0, 2, 3)), 1, atol=0.02)
    assert np.bincount(data.y_train).tolist() == [1750] * 10
