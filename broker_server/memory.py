"""A device's memory as it was measured: what its process takes beside training, what is left."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from broker_server.capacity import Capacity, count_of
from edge_runtime.trainer import MIB


@dataclass(frozen=True)
class Peak:
    """The most memory, `mib`, that a client's process held once it had trained up to `k` experts.

    `limit_mib` is what the kernel allows it.
    """

    k: int
    mib: float
    limit_mib: float

    @classmethod
    def after(cls, before: Peak | None, told: Mapping[str, float], k: int) -> Peak | None:
        """The peak after a round with `k` experts; None for a device that tells no limit.

        A process's own peak may have pages in it that it shares with others, its group's has the
        file cache: what it needed is neither above the one nor the other. A process's peak never
        falls: one that is lower is that of another process.
        """
        peaks = [told.get("peak_rss_mib", 0.0), told.get("memory_peak_mib", math.inf)]
        mib, limit_mib = min(peaks), told.get("memory_limit_mib", 0.0)
        if not (0 < mib < math.inf and 0 < limit_mib < math.inf):
            return None
        if before is not None and before.mib <= mib:
            k = max(k, before.k)
        return cls(k, mib, limit_mib)

    def allows(self, holds: Capacity, need_bytes: Callable[[int], int]) -> Capacity:
        """`holds`, or fewer experts, at least 1, if the limit leaves too little for training.

        need_bytes(k): what training with k experts should need; what its process took beyond that
        is not left for training.
        """
        beside_bytes = max(0.0, self.mib * MIB - need_bytes(self.k))
        left_bytes = self.limit_mib * MIB - beside_bytes
        if holds.k == 1 or need_bytes(holds.k) <= left_bytes:
            return holds
        k = max(1, bisect_right(range(1, holds.k), left_bytes, key=need_bytes))
        need_mib = need_bytes(k + 1) / MIB
        left_mib = max(0.0, left_bytes / MIB)
        figures = (
            f"{k + 1} need {_short(need_mib)} MiB, its limit of {_short(self.limit_mib)} MiB "
            f"leaves {_short(left_mib)}"
        )
        return Capacity(k, "memory", figures)


def killed_by(limit_mib: float | None, k: int) -> str:
    """What to say of a device that was killed with `k` experts; None: its limit is not known."""
    of = "" if limit_mib is None else f" of {_short(limit_mib)} MiB"
    return f"killed by its memory limit{of} with {count_of(k)}"


def _short(size_mib: float) -> str:
    return f"{round(size_mib, 1):.12g}"
