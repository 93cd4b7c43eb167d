"""From a data set to the shards of its devices, in memory and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_profiles.datasets import Dataset
from device_profiles.fleet.device_names import device_names
from device_profiles.partition import holdout, partition
from edge_runtime.errors import ConfigError, DataError
from edge_runtime.shard import Shard

# Independent streams of random numbers below one seed.
PARTITION_STREAM = 1
HOLDOUT_STREAM = 2


def make_shards(
    dataset: Dataset, devices: int, scheme: str, seed: int, test_fraction: float
) -> dict[str, Shard]:
    """The training part of `dataset` as one shard a device: `device-00`, `device-01`, ...

    Each device holds out `test_fraction` of its own samples. `scheme` is one of
    `partition.parse_scheme`. Raises `ConfigError` or `DataError` where the split is impossible.
    """
    if seed < 0:
        raise ConfigError(f"seed: expected 0 or more, got {seed}")
    parts = partition(
        dataset.y_train,
        devices,
        scheme,
        np.random.default_rng([seed, PARTITION_STREAM]),
        groups=dataset.person_train,
        chains=dataset.chain_train,
    )

    def kept(x: NDArray[np.float32]) -> NDArray[np.generic]:
        return levels.of_x(x) if levels else x

    levels, shards = dataset.levels, {}
    for device, (name, indices) in enumerate(zip(device_names(devices), parts, strict=True)):
        rng = np.random.default_rng([seed, HOLDOUT_STREAM, device])
        train, test = holdout(indices, test_fraction, rng, dataset.chain_train)
        shards[name] = Shard(
            x_train=kept(dataset.x_train[train]),
            y_train=dataset.y_train[train],
            x_test=kept(dataset.x_train[test]),
            y_test=dataset.y_train[test],
            scale=levels.scale if levels else None,
            offset=levels.offset if levels else None,
        )
    return shards


def write_shards(shards: dict[str, Shard], directory: str | Path) -> dict[str, Path]:
    """Write each shard to `directory` (made if needed) as NAME.npz; returns the paths by name."""
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot create the folder for shards ({error})") from None
    paths = {name: folder / f"{name}.npz" for name in shards}
    for name, shard in shards.items():
        shard.save(paths[name])
    return paths
