"""How many experts a device can hold: `k_c`, and what binds it.

The client capacity profile of the system-level paper (arXiv 2507.05685) counts compute, memory and
network. Memory binds here; the other two only through the number that the experiment asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_runtime.errors import ConfigError, FleetError


@dataclass(frozen=True)
class Capacity:
    """`k` experts, at least 1; `limit` names what binds it: ``asked`` or ``memory``."""

    k: int
    limit: str


@dataclass(frozen=True)
class Cap:
    """A device could train no more than `k` experts; 0: not even one.

    One more needed `needed_bytes`, by its own account, when it had said to have
    `memory_available_bytes`.
    """

    k: int
    needed_bytes: int
    memory_available_bytes: int


def experts_that_fit(
    asked_k: int,
    memory_available_bytes: int,
    need_bytes: Callable[[int], int],
    cap: Cap | None = None,
) -> Capacity:
    """The most experts, up to `asked_k`, whose training fits a device's memory.

    need_bytes(k): what training with k experts needs, all in all; it does not fall as k grows.
    cap: what the device found out; it is void once the device says to have more memory than then.
    Raises `FleetError` if not even one expert fits, `ConfigError` if none is asked for.
    """
    if asked_k < 1:
        raise ConfigError(f"k: a device holds 1 expert or more, not {asked_k}")
    most = asked_k
    if cap is not None and memory_available_bytes <= cap.memory_available_bytes:
        most = min(asked_k, cap.k)
        if most == 0:
            raise FleetError(
                f"training one expert needs {cap.needed_bytes} bytes of memory, more than the "
                "device may use; give it more, or choose a smaller train.micro_batch or model"
            )
    for k in range(most, 0, -1):
        if need_bytes(k) <= memory_available_bytes:
            return Capacity(k, "asked" if k == asked_k else "memory")
    raise FleetError(
        f"training one expert needs {need_bytes(1)} bytes of memory, and the device has "
        f"{memory_available_bytes}; free some, or choose a smaller train.micro_batch or model"
    )
