"""How many experts a device's memory holds; and a device's `k_c`, with what binds it.

The client capacity profile of the system-level paper (arXiv 2507.05685) counts compute, memory and
network; compute and network are in `broker_server.limits`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from edge_runtime.errors import ConfigError, FleetError
from edge_runtime.trainer import in_mib

_CLEARLY_MORE = 1.25

Limit = Literal["asked", "memory", "compute", "link"]
"""What binds a device: what it is asked for, or what of it allows no more."""


@dataclass(frozen=True)
class Capacity:
    """`k` experts, at least 1; `limit` names what binds it, `figures` are for people to read."""

    k: int
    limit: Limit
    figures: str = field(default="", compare=False)

    @property
    def experts(self) -> str:
        """`k` in words."""
        return count_of(self.k)


@dataclass(frozen=True)
class Cap:
    """Training `k` experts was too much for a device.

    It needed `needed_bytes` by the device's own account, when the device had said to have
    `memory_available_bytes`, and to train with `trainer`.
    """

    k: int
    needed_bytes: int
    memory_available_bytes: int
    trainer: str

    def forbids(self, memory_available_bytes: int) -> bool:
        """Whether `k` experts stay too many where what they need seems to be there.

        What a device says to have is what was free when it started: it differs a little each time.
        """
        unforeseen = self.needed_bytes <= self.memory_available_bytes
        return unforeseen and memory_available_bytes < _CLEARLY_MORE * self.memory_available_bytes


def experts_that_fit(
    asked_k: int,
    memory_available_bytes: int,
    need_bytes: Callable[[int], int],
    cap: Cap | None = None,
    least_k: int = 1,
) -> Capacity:
    """The most experts, from `least_k` up to `asked_k`, whose training fits a device's memory.

    need_bytes(k): what training with k experts needs, all in all; it does not fall as k grows.
    cap: what the device found out; `need_bytes` is scaled to what it needed. It is given `least_k`
    at least as long as that was not tried: an estimate alone does not shut it out.
    Raises `FleetError` if not even `least_k` fit, `ConfigError` if none is asked for.
    """
    if asked_k < 1:
        raise ConfigError(f"k: a device holds 1 expert or more, not {asked_k}")
    most, found, reckoned = asked_k, 1, 1
    if cap is not None:
        reckoned = max(1, need_bytes(cap.k))
        found = max(reckoned, cap.needed_bytes)
        if cap.forbids(memory_available_bytes):
            most = min(asked_k, cap.k - 1)

    def scaled(k: int) -> int:
        return -(-need_bytes(k) * found // reckoned)

    what = "1 expert" if least_k == 1 else f"all {least_k} experts"
    advice = "free some, or choose a smaller train.micro_batch or model"
    if most < least_k:
        needed = in_mib(scaled(least_k))
        raise FleetError(f"it ran out of memory with {what}, which needs {needed}; {advice}")
    k = most
    if scaled(most) > memory_available_bytes:
        # To tell what k needs may take an export: few are asked for.
        smaller = range(least_k, most)
        k = least_k - 1 + bisect_right(smaller, memory_available_bytes, key=scaled)
    untried = cap is not None and least_k < cap.k
    if k < least_k and untried and need_bytes(least_k) <= memory_available_bytes:
        k = least_k
    if k < least_k:
        raise FleetError(
            f"training {what} needs {in_mib(scaled(least_k))} of memory, and the device has "
            f"{in_mib(max(0, memory_available_bytes))}; {advice}"
        )
    if k == asked_k:
        return Capacity(k, "asked")
    if k == most:
        return Capacity(k, "memory", f"it ran out of memory with {count_of(k + 1)}")
    has = in_mib(max(0, memory_available_bytes))
    return Capacity(k, "memory", f"{k + 1} need {in_mib(scaled(k + 1))}, it has {has}")


def count_of(k: int) -> str:
    """Such as ``2 experts``."""
    return "1 expert" if k == 1 else f"{k} experts"
