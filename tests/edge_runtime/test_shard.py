"""Shards survive the way to disk and back, and every defect is one clear line."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.errors import DataError
from edge_runtime.shard import Shard

SAMPLE_TYPES = [np.dtype(name) for name in ("f2", "f4", "f8", "u1", "i2", ">f4")]
LABEL_TYPES = [np.dtype(name) for name in ("u1", "i2", "i8", "u8", ">i4")]
X = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
GOOD: dict[str, Any] = {
    "x_train": X,
    "y_train": np.array([0, 1, 2, 1]),
    "x_test": X[:2],
    "y_test": np.array([4, 0]),
}


def write(folder: Path, **changes: Any) -> Path:
    """A shard file with some arrays changed, or left out where the change is None."""
    arrays = {name: a for name, a in {**GOOD, **changes}.items() if a is not None}
    path = folder / "shard.npz"
    np.savez(path, **arrays)
    return path


LEVELS: dict[str, Any] = {
    "x_train": X.astype(np.uint8),
    "x_test": X[:2].astype(np.uint8),
    "scale": np.float32([[0.5], [2.0]]),
    "offset": np.float32([[-1.0], [0.25]]),
}


def test_levels_are_kept_and_drawn_scaled(tmp_path: Path) -> None:
    loaded = Shard.load(write(tmp_path, **LEVELS))
    copy = tmp_path / "copy.npz"
    loaded.save(copy)
    for shard in (loaded, Shard.load(copy)):
        assert shard.x_train.dtype == np.uint8
        drawn = shard.train[np.array([3, 0])]
        assert drawn.dtype == np.float32
        np.testing.assert_array_equal(drawn, X[[3, 0]] * LEVELS["scale"] + LEVELS["offset"])
        np.testing.assert_array_equal(shard.x_train, LEVELS["x_train"])  # drawing changes nothing
        np.testing.assert_array_equal(shard.test[:], X[:2] * LEVELS["scale"] + LEVELS["offset"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": X[:2]}, "x_test: expected uint8 beside scale and offset, got float32"),
        ({"scale": None}, "scale: expected it beside the other of scale and offset"),
        ({"offset": np.float32([np.nan])}, r"offset: expected finite values up to 1e\+30, got nan"),
        ({"offset": np.array([1e31])}, "offset: expected finite values .* got 1e\\+31"),
        ({"scale": np.array([1e300])}, "scale: expected finite values .* got 1e\\+300"),
        ({"scale": np.longdouble([-1e300])}, "scale: expected finite values .* got 1e\\+300"),
        ({"scale": np.longdouble(["1e4000"])}, "scale: expected finite values .* got inf"),
        ({"scale": np.float16([np.inf])}, "scale: expected finite values .* got inf"),
        ({"scale": np.zeros(0, np.float32)}, r"scale: .* broadcasts to \[2, 3\], got \[0\]"),
        ({"offset": np.zeros((0, 3))}, r"offset: .* broadcasts to \[2, 3\], got \[0, 3\]"),
        ({"offset": np.array([1])}, "offset: expected float values, got int64"),
        ({"scale": np.ones(2, np.float32)}, r"scale: .* broadcasts to \[2, 3\], got \[2\]"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_levels_with_odd_scaling(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Shard.load(write(tmp_path, **{**LEVELS, **changes}))


def test_properties() -> None:
    shard = Shard(**GOOD)
    assert (shard.samples, shard.test_samples, shard.shape, shard.labels) == (4, 2, (2, 3), 5)


def test_an_empty_test_part_is_allowed(tmp_path: Path) -> None:
    shard = Shard.load(write(tmp_path, x_test=X[:0], y_test=np.zeros(0, dtype=np.uint8)))
    assert (shard.test_samples, shard.labels) == (0, 3)


@given(
    x=hnp.arrays(
        st.sampled_from(SAMPLE_TYPES),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=4),
        elements=st.integers(0, 200),
    ),
    label_type=st.sampled_from(LABEL_TYPES),
    data=st.data(),
)
@settings(max_examples=50)
def test_what_is_saved_is_what_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, x: Any, label_type: Any, data: st.DataObject
) -> None:
    y = data.draw(hnp.arrays(label_type, len(x), elements=st.integers(0, 100)))
    path = tmp_path_factory.mktemp("shard") / "no-suffix"
    Shard(x, y, x[:1], y[:1]).save(path)
    loaded = Shard.load(path)
    assert loaded.x_train.dtype == np.dtype(np.float32) and loaded.y_test.dtype == np.int64
    np.testing.assert_array_equal(loaded.x_train, x)
    np.testing.assert_array_equal(loaded.y_train, y)
    np.testing.assert_array_equal(loaded.x_test, x[:1])
    np.testing.assert_array_equal(loaded.y_test, y[:1])


def test_equal_shards_give_equal_bytes(tmp_path: Path) -> None:
    Shard(**GOOD).save(tmp_path / "a")
    Shard(**GOOD).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y_test": None}, "expected an array y_test, found x_train, y_train, x_test"),
        ({"x_train": X.astype(complex)}, "x_train: expected float or integer values, got complex"),
        ({"x_train": X > 3}, "x_train: expected float or integer values, got bool"),
        ({"x_train": np.full((4, 2), "a")}, "x_train: expected float or integer values, got <U1"),
        ({"x_train": np.full((4, 2), None)}, "x_train: cannot read it"),
        ({"x_train": X.astype(float) * 1e300}, "x_train: .* values, got float64 beyond float32"),
        ({"x_train": np.full((4, 2), 2**24 + 1)}, "got 16777217 to 16777217"),
        ({"x_train": np.full((4, 2), 2**64 - 1)}, "x_train: expected integers up to 16777216"),
        ({"x_train": X * np.nan}, "x_train: expected finite values, got NaN or infinity"),
        ({"x_test": X[:2] + np.float32(np.inf)}, "x_test: expected finite values"),
        ({"x_train": np.zeros(4)}, r"x_train: expected shape \[samples, \*shape\], got \[4\]"),
        ({"x_train": np.zeros((4, 0))}, r"x_train: expected shape .*, got \[4, 0\]"),
        ({"y_train": np.zeros(4)}, "y_train: expected integer labels, got float64"),
        ({"y_train": np.zeros((4, 1), int)}, r"y_train: expected shape \[samples\], got \[4, 1\]"),
        ({"y_train": np.array([0, 1, -2, 1])}, "y_train: expected labels 0, 1, 2, ..., got -2"),
        ({"y_test": np.array([0, 2**64 - 1], np.uint64)}, "y_test: .*, got 18446744073709551615"),
        ({"y_train": np.zeros(3, int)}, "x_train and y_train: expected equal lengths, got 4 and 3"),
        ({"y_test": np.zeros(3, int)}, "x_test and y_test: expected equal lengths, got 2 and 3"),
        (
            {"x_train": X[:0], "y_train": np.zeros(0, int)},
            "x_train: expected at least one training sample, got none",
        ),
        (
            {"x_test": np.zeros((2, 3, 2))},
            r"x_test: expected samples of shape \[2, 3\] as in x_train, got \[3, 2\]",
        ),
    ],
)
def test_a_defect_is_one_line_that_names_file_and_array(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=says) as caught:
        Shard.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_files_that_are_no_shards(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\nworld")
    (tmp_path / "empty").touch()
    np.save(tmp_path / "single.npy", X)
    with zipfile.ZipFile(tmp_path / "bytes", "w") as archive:
        archive.writestr("x_train.npy", b"no array")
    for name, says in [
        ("missing.npz", "no such file"),
        (".", "no such file"),
        ("text", "expected an .npz file, but "),
        ("empty", "expected an .npz file, but "),
        ("single.npy", "got a single array"),
        ("bytes", "x_train: expected an array, got other bytes"),
    ]:
        with pytest.raises(DataError, match=says) as caught:
            Shard.load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@given(data=st.data())
@settings(max_examples=150)
def test_damage_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any cut or overwritten byte gives a DataError or the same shard, never another error."""
    path = write(tmp_path_factory.mktemp("damage"))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw = raw[:at]
    else:
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        shard = Shard.load(path)
    except DataError:
        return
    for name, array in GOOD.items():
        np.testing.assert_array_equal(getattr(shard, name), array)


def test_a_shard_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write the shard"):
        Shard(**GOOD).save(tmp_path / "no" / "such" / "folder.npz")
