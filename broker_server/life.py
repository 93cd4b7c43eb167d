"""How time passes for devices, and what else an emulation knows of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Life:
    """Real boards by default; an emulation says how it differs.

    `time_scale` seconds of a device's life pass in one second here, but none in the seconds, real
    ones, that it was held back in: `held_s` tells how many these are so far. `killed` names the
    devices that their memory limit has killed since it was last asked; with `sees_ends` there are
    no others: who comes as another process, and was not named, was not killed. `end_turn` takes
    from a device the leave to compute: others may wait for it.
    """

    time_scale: float = 1.0
    held_s: Callable[[str], float] = lambda client: 0.0
    killed: Callable[[], Collection[str]] = tuple
    sees_ends: bool = False
    end_turn: Callable[[str], None] = lambda client: None

    def clock_of(self, client: str, clock: Callable[[], float]) -> Callable[[], float]:
        """The seconds of this device's life; `clock` tells those here."""
        return lambda: self.time_scale * (clock() - self.held_s(client))
