"""`TurnQueue`: whose turn it is, apart from sockets and clocks."""

from __future__ import annotations

from collections.abc import Mapping

from edge_runtime.turn import Phase

_UNIT = 1e-6  # of a core: whole numbers add up to the same in any order

Change = tuple[str, "Phase | None"]
"""A device begins this phase, or (None) has none any more."""


class TurnQueue:
    """Phases begin in the order of asking, as soon as their quotas fit the cores together.

    Nobody overtakes: one that waits for much is not kept waiting by those who want little. A device
    that holds a quota may go on to a phase that needs no more at once. For a larger one it gives
    up what it holds and waits like the others; so nobody waits for one who waits.
    """

    def __init__(self, cores: float, quotas: Mapping[str, Mapping[Phase, float]]) -> None:
        """`cores` are shared; `quotas` in cores, by device and phase. `ValueError` for a quota
        that can never fit."""
        self._capacity = round(cores / _UNIT)
        self._quotas = {
            name: {phase: round(quota / _UNIT) for phase, quota in of.items()}
            for name, of in quotas.items()
        }
        for name, of in quotas.items():
            for phase, quota in of.items():
                if self._quotas[name][phase] > self._capacity:
                    raise ValueError(f"{name}: {phase} needs {quota:g} cores, there are {cores:g}")
        self._held: dict[str, int] = {}
        self._waiting: dict[str, Phase] = {}  # in the order of asking

    def knows(self, name: str) -> bool:
        """Whether this device has quotas."""
        return name in self._quotas

    def waits(self, name: str) -> bool:
        """Whether the device has asked and not begun."""
        return name in self._waiting

    def busy(self, name: str) -> bool:
        """Whether the device holds a quota, or waits for one."""
        return name in self._held or name in self._waiting

    def ask(self, name: str, phase: Phase) -> list[Change]:
        """The device, which does not wait, wants to begin `phase`; what changes by that."""
        quota, held = self._quotas[name][phase], self._held.get(name)
        if held is not None and quota <= held:
            self._held[name] = quota
            return [(name, phase), *self._begin_what_fits()]
        self._held.pop(name, None)
        self._waiting[name] = phase
        begun = self._begin_what_fits()
        gave_up = held is not None and name in self._waiting
        return [*([(name, None)] if gave_up else []), *begun]

    def end(self, name: str) -> list[Change]:
        """The device has nothing to compute, or is gone; what changes by that."""
        self._waiting.pop(name, None)
        held = self._held.pop(name, None)
        return [*([(name, None)] if held is not None else []), *self._begin_what_fits()]

    def _begin_what_fits(self) -> list[Change]:
        begun: list[Change] = []
        free = self._capacity - sum(self._held.values())
        while self._waiting:
            name, phase = next(iter(self._waiting.items()))
            quota = self._quotas[name][phase]
            if quota > free:
                break
            free -= quota
            del self._waiting[name]
            self._held[name] = quota
            begun.append((name, phase))
        return begun
