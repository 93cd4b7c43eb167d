"""Values on their way between the two Pythons of `remote.py`."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class PackedArray(NamedTuple):
    """An array with what pickle forgets: its strides, and whether it may be written."""

    data: bytes
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    writeable: bool


class Held(NamedTuple):
    """Names an object that stays in the other Python."""

    number: int


def pack(value: Any) -> Any:
    """`value` with its arrays, at any depth, as `PackedArray`."""
    if not isinstance(value, np.ndarray):
        return mapped(value, pack)
    low, high = np.lib.array_utils.byte_bounds(value)
    data = ctypes.string_at(low, high - low)
    offset = value.__array_interface__["data"][0] - low
    dtype, writeable = value.dtype.str, value.flags.writeable
    return PackedArray(data, dtype, value.shape, value.strides, offset, writeable)


def unpack(value: Any) -> Any:
    """What `pack` was given."""
    if not isinstance(value, PackedArray):
        return mapped(value, unpack)
    memory = bytearray(value.data)
    array = np.ndarray(value.shape, value.dtype, memory, value.offset, value.strides)
    array.flags.writeable = value.writeable
    return array


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with `change` done to its items, if it is a container."""
    if type(value) in (tuple, list):
        return type(value)(change(item) for item in value)
    if type(value) is dict:
        return {key: change(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(
            value, **{f.name: change(getattr(value, f.name)) for f in fields}
        )
    return value


def arrays(value: Any) -> Iterator[NDArray[Any]]:
    """The arrays in `value` that may be written, always in the same order."""
    found: list[NDArray[Any]] = []

    def collect(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            if item.flags.writeable:
                found.append(item)
            return item
        return mapped(item, collect)

    collect(value)
    return iter(found)
