"""One assignment problem as files, so that every solver's process starts from the same arrays.

Clients have 50 to 500 samples and hold 1 to 4 experts; load bounds are `delta` around the fair
share. Each client has a few experts that fit it, its specialities: their quality is drawn from 0.5
to 1, that of the others from 0 to 0.5. Some experts are popular: the chance that an expert is a
client's speciality falls as 1, 1/2, 1/3 ... down a random order of the experts. So the bounds bind,
above for the popular experts and below for the others. Uniform quality, from 0 to 1, is the easy
case: the bounds hardly bind.

A million clients and more have their quality in float32, and it is mapped instead of read. It is
made, and written, by blocks of clients in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

STREAMED = 1_000_000
"""From so many clients on, quality is streamed from its file."""

_BLOCK = 65_536  # clients
_SAMPLES, _MOST_EXPERTS, _SPECIALITIES = (50, 500), 4, 3


@dataclass(frozen=True, eq=False)
class Instance:
    """quality [C, E]; samples, capacity [C]; lower, upper [E]: the load bounds, in samples."""

    quality: NDArray[Any]
    samples: NDArray[np.int64]
    capacity: NDArray[np.int64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


def write(folder: Path, clients: int, experts: int, seed: int, delta: float, uniform: bool) -> None:
    """Make the instance that `read` gives back."""
    rng = np.random.default_rng([seed, clients, experts])
    samples = rng.integers(_SAMPLES[0], _SAMPLES[1] + 1, clients)
    capacity = rng.integers(1, min(_MOST_EXPERTS, experts) + 1, clients)
    popularity = 1 / (1 + rng.permutation(experts))
    limits = np.array(bounds(samples, capacity, experts, delta))
    for name, array in (("samples", samples), ("capacity", capacity), ("bounds", limits)):
        np.save(folder / f"{name}.npy", array)
    kind = np.float32 if clients >= STREAMED else np.float64
    quality = open_memmap(folder / "quality.npy", "w+", kind, (clients, experts))
    for first in range(0, clients, _BLOCK):
        block = quality[first : first + _BLOCK]
        block[:] = rng.random(block.shape) if uniform else planted(rng, block.shape, popularity)
    quality.flush()


def read(folder: Path) -> Instance:
    """The instance of a folder; streamed quality stays on disk."""
    names = ("quality", "samples", "capacity", "bounds")
    quality, samples, capacity, limits = (
        np.load(folder / f"{n}.npy", mmap_mode="r") for n in names
    )
    if len(samples) < STREAMED:
        quality = np.array(quality)
    return Instance(quality, np.array(samples), np.array(capacity), *np.array(limits))


def bounds(
    samples: NDArray[np.int64], capacity: NDArray[np.int64], experts: int, delta: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lower [E], upper [E]): exactly `delta` around the fair share, whatever a round would use."""
    share = np.full(experts, samples @ capacity / experts)
    return np.maximum(0, 1 - delta) * share, (1 + delta) * share


def planted(
    rng: np.random.Generator, shape: tuple[int, ...], popularity: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Quality of the `shape` [C, E]; popularity [E]: the weights of the specialities' lots."""
    experts = shape[1]
    specialities = max(1, min(_SPECIALITIES, experts // 2))
    # Who is first of independent exponential clocks: a weighted draw without replacement.
    clocks = rng.exponential(size=shape) / popularity
    last = np.partition(clocks, specialities - 1, axis=1)[:, specialities - 1, None]
    quality: NDArray[np.float64] = (rng.random(shape) + (clocks <= last)) / 2
    return quality
