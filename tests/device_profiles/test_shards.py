"""Shards of a data set: named, complete, repeatable, and with chains kept whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from device_profiles.datasets import Dataset
from device_profiles.datasets.dataset import Levels
from device_profiles.shards import make_shards, write_shards
from edge_runtime.errors import ConfigError, DataError
from edge_runtime.shard import Shard

SAMPLES = 600


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """600 samples, each holding its own number, in chains of 5, from 6 people."""
    number = np.arange(SAMPLES)
    return Dataset(
        name="numbers",
        x_train=number[:, None].astype(np.float32),
        y_train=number // 5 % 4,
        x_test=np.full((3, 1), -1, dtype=np.float32),
        y_test=np.array([0, 1, 2]),
        person_train=number // 100 + 1,
        chain_train=number // 5,
        classes=["a", "b", "c", "d"],
    )


def numbers(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    return shard.x_train[:, 0].astype(int), shard.x_test[:, 0].astype(int)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet(0.5)", "classes(2)", "natural"])
def test_every_sample_once_and_every_chain_on_one_side(dataset: Dataset, scheme: str) -> None:
    shards = make_shards(dataset, 6, scheme, seed=3, test_fraction=0.25)
    assert list(shards) == [f"device-0{number}" for number in range(6)]
    sides = [side for shard in shards.values() for side in numbers(shard)]
    np.testing.assert_array_equal(np.sort(np.concatenate(sides)), np.arange(SAMPLES))
    chains = [chain for side in sides for chain in np.unique(side // 5)]
    assert len(chains) == len(set(chains)) == SAMPLES // 5
    for shard in shards.values():
        train, test = numbers(shard)
        np.testing.assert_array_equal(shard.y_train, train // 5 % 4)
        np.testing.assert_array_equal(shard.y_test, test // 5 % 4)
        assert abs(len(test) - 0.25 * (len(train) + len(test))) <= 5
    if scheme == "natural":
        people = [set(np.concatenate(numbers(shard)) // 100) for shard in shards.values()]
        assert people == [{0}, {1}, {2}, {3}, {4}, {5}]


def test_the_seed_decides(dataset: Dataset) -> None:
    def bytes_of(seed: int) -> list[bytes]:
        shards = make_shards(dataset, 5, "dirichlet(0.5)", seed, 0.2).values()
        return [part.tobytes() for shard in shards for part in numbers(shard)]

    assert bytes_of(1) == bytes_of(1)
    assert bytes_of(1) != bytes_of(2)


def test_devices_hold_out_different_chains(dataset: Dataset) -> None:
    shards = make_shards(dataset, 6, "natural", seed=0, test_fraction=0.25)
    held_out = {tuple(numbers(shard)[1] % 100) for shard in shards.values()}
    assert len(held_out) == 6


def test_names_are_wide_enough_to_sort(dataset: Dataset) -> None:
    names = list(make_shards(dataset, 101, "iid", 0, 0.0))
    assert names[0] == "device-000" and names[-1] == "device-100" and names == sorted(names)


def test_files_hold_the_shards_and_repeat_byte_for_byte(dataset: Dataset, tmp_path: Path) -> None:
    shards = make_shards(dataset, 4, "iid", seed=1, test_fraction=0.2)
    paths = write_shards(shards, tmp_path / "new" / "folder")
    again = write_shards(make_shards(dataset, 4, "iid", 1, 0.2), tmp_path / "again")
    assert list(paths) == list(shards)
    for name, shard in shards.items():
        assert paths[name].name == f"{name}.npz"
        assert paths[name].read_bytes() == again[name].read_bytes()
        loaded = Shard.load(paths[name])
        np.testing.assert_array_equal(loaded.x_train, shard.x_train)
        np.testing.assert_array_equal(loaded.y_test, shard.y_test)


def test_what_cannot_be_done(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed: expected 0 or more, got -1"):
        make_shards(dataset, 4, "iid", -1, 0.2)
    with pytest.raises(ConfigError, match="test fraction"):
        make_shards(dataset, 4, "iid", 0, 1.5)
    with pytest.raises(DataError, match="at most 6 devices"):
        make_shards(dataset, 7, "natural", 0, 0.2)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot create the folder"):
        write_shards({}, tmp_path / "file" / "folder")


def test_images_stay_levels_in_a_shard() -> None:
    rng = np.random.default_rng(0)
    levels = Levels.standardising(
        np.float32([0.5, 0.4])[:, None, None], np.float32([0.2, 0.3])[:, None, None]
    )
    images = rng.integers(0, 256, (40, 2, 4, 4)).astype(np.uint8)
    x, y = levels.to_x(images), np.arange(40) % 3
    data = Dataset("cifar", x, y, x[:1], y[:1], None, None, ["a", "b", "c"], levels)
    for shard in make_shards(data, 4, "iid", 0, 0.25).values():
        assert shard.x_train.dtype == np.uint8
        where = [
            int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in shard.x_train
        ]
        np.testing.assert_array_equal(shard.train[:], x[where])
