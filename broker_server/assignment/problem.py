"""One round's assignment problem: who could train what, and how much each expert should get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from broker_server import load
from edge_runtime.errors import FleetError

_MAX_QUALITY = 1e30
_MAX_SAMPLES = 10**9
_LARGEST = np.finfo(np.float64).max
_BLOCK_BYTES = 32 * 1024 * 1024
_WHOLE = ("samples", "capacity", "places")

Quality = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """`C` clients, `E` experts. Arrays are copied and read-only; raises `FleetError`.

    quality [C, E]: how well expert e fits client c; only differences within a row matter. float32
        and float64 stay what they are, and an array that is read-only already is not copied: a
        memory map (``np.load(..., mmap_mode="r")``) stays on disk.
    samples [C]: n_c, at least 1. capacity [C]: k_c, 1 to E.
    lower, upper [E]: the load that each expert should get; `upper` may be infinite.
    seed: breaks ties, at least 0.
    weight [C, E]: the load that client c brings to expert e, if it is not n_c for each of them.
    history [E]: the experts' loads before this round.
    places [C]: the clients' numbers in the whole fleet, where only some take part in a round.
    round: the round's number, from 1.
    """

    quality: Quality
    samples: NDArray[np.int64]
    capacity: NDArray[np.int64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    seed: int
    weight: NDArray[np.float64] | None = None
    history: NDArray[np.float64] | None = None
    places: NDArray[np.int64] | None = None
    round: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("seed", "round") and value is not None:
                object.__setattr__(self, field.name, _array(field.name, value))
        if self.quality.ndim != 2 or 0 in self.quality.shape:
            raise FleetError(
                "assignment: quality must be [clients, experts] with at least one of each, "
                f"not of shape {self.quality.shape}"
            )
        clients, experts = self.quality.shape
        for name, shape in (
            ("samples", (clients,)),
            ("capacity", (clients,)),
            ("lower", (experts,)),
            ("upper", (experts,)),
            ("weight", (clients, experts)),
            ("history", (experts,)),
            ("places", (clients,)),
        ):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise FleetError(
                    f"assignment: {name} must have shape {shape} to go with quality "
                    f"{self.quality.shape}, not {value.shape}"
                )
        for rows in self.blocks():
            part = self.quality[rows]
            good = (part > -_MAX_QUALITY) & (part < _MAX_QUALITY)
            _require(good, "quality", part, "a finite number", rows.start)
        self._require_ranges(experts)
        if self.seed < 0 or self.round < 1:
            raise FleetError(
                f"assignment: seed must be 0 or more and round 1 or more, not {self.seed} and "
                f"{self.round}"
            )

    def _require_ranges(self, experts: int) -> None:
        samples, capacity = self.samples, self.capacity
        in_range = (samples >= 1) & (samples <= _MAX_SAMPLES)
        _require(in_range, "samples", samples, f"1 to {_MAX_SAMPLES}")
        in_range = (capacity >= 1) & (capacity <= experts)
        _require(in_range, "capacity", capacity, f"1 to {experts}, the number of experts")
        _require((self.lower >= 0) & np.isfinite(self.lower), "lower", self.lower, "0 or more")
        _require(self.upper >= self.lower, "upper", self.upper, "at least its lower bound")
        for name, most in (
            ("weight", _MAX_SAMPLES * experts),
            ("history", _LARGEST),
            ("places", np.inf),
        ):
            value = getattr(self, name)
            if value is not None:
                _require((value >= 0) & (value <= most), name, value, "a number of 0 or more")

    @classmethod
    def balanced(
        cls,
        quality: ArrayLike,
        samples: ArrayLike,
        capacity: ArrayLike,
        *,
        delta: float,
        grain: float = load.GRAIN,
        history: ArrayLike | None = None,
        seed: int = 0,
    ) -> Problem:
        """A problem whose load bounds are those of `broker_server.load.bounds`.

        delta, grain: tolerances around the fair share, 0 or more; `ConfigError` otherwise. history
        [E]: the experts' loads so far, 0 by default.
        """
        table = np.asarray(quality)
        experts = table.shape[1] if table.ndim == 2 else 1
        past = np.zeros(experts) if history is None else _array("history", history)
        # Checked before the bounds are made from them; the open bounds are never looked at.
        open_ended = np.full(experts, np.inf)
        free = cls(table, samples, capacity, np.zeros(experts), open_ended, seed, history=past)  # type: ignore[arg-type]
        lower, upper = load.bounds(past, free.samples, free.capacity, delta, grain)
        return cls(free.quality, free.samples, free.capacity, lower, upper, seed, history=past)

    @property
    def clients(self) -> int:
        """C, the number of clients."""
        return int(self.quality.shape[0])

    @property
    def experts(self) -> int:
        """E, the number of experts."""
        return int(self.quality.shape[1])

    def blocks(self) -> Iterator[slice]:
        """The clients in blocks, so that what is computed of a block stays small."""
        size = max(1, _BLOCK_BYTES // (8 * self.experts))
        for start in range(0, self.clients, size):
            yield slice(start, min(start + size, self.clients))

    def load_of(self, X: NDArray[np.bool_]) -> NDArray[Any]:
        """The load [E] that the assignment `X` [C, E] brings; whole where weights are samples."""
        if self.weight is not None:
            weighed: NDArray[np.float64] = np.einsum("ce,ce->e", self.weight, X)
            return weighed
        total: NDArray[Any] = np.zeros(self.experts, np.int64)
        for rows in self.blocks():
            total = total + self.samples[rows] @ X[rows]
        return total


def _array(name: str, value: Any) -> NDArray[Any]:
    """A read-only array of what `value` holds; whole numbers stay whole."""
    try:
        array: NDArray[Any] = np.asarray(value)
        kind = array.dtype.kind
        if kind not in "iuf" or (name in _WHOLE and kind == "f" and array.size):
            raise TypeError
    except (TypeError, ValueError):
        wanted = "whole numbers" if name in _WHOLE else "numbers"
        raise FleetError(f"assignment: {name} must be an array of {wanted}") from None
    wanted_type: Any = np.int64 if name in _WHOLE else np.float64
    if name == "quality" and array.dtype == np.float32:
        wanted_type = np.float32
    if array.dtype == wanted_type and not array.flags.writeable:
        return array
    array = np.array(array, dtype=wanted_type)
    array.setflags(write=False)
    return array


def _require(
    good: NDArray[np.bool_], name: str, array: NDArray[Any], wanted: str, first: int = 0
) -> None:
    """`FleetError` naming the first bad entry of `array`, whose rows count from `first`."""
    if not good.all():
        where = tuple(int(i) for i in np.argwhere(~good)[0])
        place = ", ".join(str(i + first * (axis == 0)) for axis, i in enumerate(where))
        raise FleetError(f"assignment: {name}[{place}] must be {wanted}, not {array[where]}")
