"""A world without threads and without real time: it moves when someone waits for a message."""

from __future__ import annotations

from collections.abc import Callable

from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink
from edge_runtime.transport.packet import Packet

MAX_STEPS = 50_000


class World:
    """A clock, a broker, and what the others do while the one under test waits."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.now_s = 100.0
        self.actors: list[Callable[[], None]] = []
        self._steps = 0

    def clock(self) -> float:
        return self.now_s

    def step(self) -> None:
        self._steps += 1
        assert self._steps < MAX_STEPS, "the one under test waits for ever"
        for act in list(self.actors):
            act()


class DrivenLink(MemoryLink):
    """The link of the one under test: an empty inbox lets the others act, then time passes."""

    def __init__(self, world: World, client_id: str, will: tuple[str, bytes] | None = None) -> None:
        self._world = world
        super().__init__(world.broker, client_id, will)

    def receive(self, timeout_s: float) -> Packet | None:
        packet = super().receive(0)
        if packet is None:
            self._world.step()
            packet = super().receive(0)
            if packet is None:
                self._world.now_s += max(timeout_s, 0.001)  # even a glance takes time
        return packet
