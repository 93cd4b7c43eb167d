"""Data sets, by name: one file each, read from a package or from files that the user gives."""

from __future__ import annotations

from device_profiles.datasets import cifar, digits, fashion, har
from device_profiles.datasets.dataset import Dataset
from edge_runtime.errors import ConfigError

__all__ = ["NAMES", "Dataset", "load"]

_LOADERS = {"digits": digits.load, "har": har.load, "cifar": cifar.load, "fashion": fashion.load}

NAMES = tuple(_LOADERS)


def load(name: str, path: str | None = None) -> Dataset:
    """The data set called `name`, from the file or folder `path` (`digits` needs none).

    Raises `ConfigError` for an unknown name and `DataError` for files that are missing or damaged.
    """
    if name not in _LOADERS:
        raise ConfigError(f"data set: expected one of {', '.join(NAMES)}, got {name!r}")
    return _LOADERS[name](path)
