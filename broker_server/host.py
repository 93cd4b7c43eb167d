"""What runs beside the server on this machine: a broker and a fleet of its own, or neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from broker_server.brokers.broker import Broker
from device_profiles.fleet import Fleet

STOP_S = 5.0


@dataclass
class Host:
    """The processes that the server depends on. Without `start_fleet` devices run elsewhere."""

    broker: Broker
    start_fleet: Callable[[], Fleet] | None = None
    fleet: Fleet | None = field(default=None, init=False)

    def start_devices(self) -> None:
        """Start our own devices. The server listens by now: no hello is said in vain."""
        if self.start_fleet is not None:
            self.fleet = self.start_fleet()

    def check_joining(self) -> None:
        """Raise if the broker or one of the devices that are to join has ended."""
        self.check()
        if self.fleet is not None:
            self.fleet.check()

    @property
    def reachable(self) -> bool:
        """Whether there is a broker to reach the devices by, as far as we know."""
        return not self.broker.ended

    @property
    def devices_are_ours(self) -> bool:
        """Whether the devices are processes that begin, and end, with this server."""
        return self.start_fleet is not None

    def check(self) -> None:
        """Raise `BrokerError` if the broker has ended: without it no round can."""
        self.broker.check()

    def wait_for_devices(self) -> None:
        """Give our own devices, which were told to stop, the time to do so."""
        if self.fleet is not None:
            self.fleet.wait(STOP_S)

    def incidents(self) -> list[str]:
        """Which devices' processes have ended with an error since the last call, and their last
        words."""
        return self.fleet.ended() if self.fleet is not None else []
