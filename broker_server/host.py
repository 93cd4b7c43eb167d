"""What runs beside the server on this machine: a broker and a fleet of its own, or neither."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from broker_server.brokers.broker import Broker
from device_profiles.fleet.fleet import Fleet

STOP_S = 5.0
Figures = Callable[[], Mapping[str, Any]]


def _nothing() -> Mapping[str, Any]:
    return {}


@dataclass
class Host:
    """The processes that the server depends on. Without `start_fleet` devices run elsewhere.

    Where boards are emulated, seconds of life pass `time_scale` times as fast as here, `held_s`
    tells how long a device waited for its turn, in seconds here, `end_turn` takes a device's turn
    from it, and `facts` and `closing_facts`
    what to report of the emulation, before and after the rounds.
    """

    broker: Broker
    start_fleet: Callable[[], Fleet] | None = None
    time_scale: float = 1.0
    held_s: Callable[[str], float] = lambda client: 0.0
    end_turn: Callable[[str], None] = lambda client: None
    facts: Figures = _nothing
    closing_facts: Figures = _nothing
    fleet: Fleet | None = field(default=None, init=False)
    _killed: set[str] = field(default_factory=set, init=False)

    def start_devices(self) -> None:
        """Start our own devices. The server listens by now: no hello is said in vain."""
        if self.start_fleet is not None:
            self.fleet = self.start_fleet()

    def expected(self, devices: int) -> int:
        """How many of `devices` are there to join now: those of our own that are not away."""
        return self.fleet.present if self.fleet is not None else devices

    def check_joining(self) -> None:
        """Raise if the broker or one of the devices that are to join has ended."""
        self.check()
        if self.fleet is not None:
            self.fleet.check_joining()

    @property
    def reachable(self) -> bool:
        """Whether there is a broker to reach the devices by, as far as we know."""
        return not self.broker.ended

    @property
    def devices_are_ours(self) -> bool:
        """Whether the devices are processes that begin, and end, with this server."""
        return self.start_fleet is not None

    def check(self) -> None:
        """Raise `BrokerError` if the broker has ended: without it no round can.

        To be called often: our own devices come and go here.
        """
        self.broker.check()
        if self.fleet is not None:
            self._killed.update(self.fleet.tick())

    def killed(self) -> Collection[str]:
        """The devices that their memory limit has killed since the last call."""
        killed, self._killed = self._killed, set()
        return killed

    @property
    def sees_ends(self) -> bool:
        """Whether all ends of the devices' processes are seen, and why they ended."""
        return self.fleet is not None

    @property
    def lost(self) -> Collection[str]:
        """Our own devices of which a process ended before the run did."""
        return self.fleet.lost if self.fleet is not None else ()

    def wait_for_devices(self) -> None:
        """Give our own devices, which were told to stop, the time to do so."""
        if self.fleet is not None:
            self.fleet.wait(STOP_S)

    def incidents(self) -> list[str]:
        """What happened to our own devices since the last call: who came, left, was killed, or
        ended with an error, and its last words."""
        return self.fleet.events() if self.fleet is not None else []
