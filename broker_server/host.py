"""What runs beside the server on this machine: a broker and a fleet of its own, or neither."""

from __future__ import annotations

from dataclasses import dataclass

from broker_server.broker import Broker
from device_profiles.fleet import Fleet

STOP_S = 5.0


@dataclass(frozen=True)
class Host:
    """The processes that the server depends on. `fleet` is None where devices run elsewhere."""

    broker: Broker
    fleet: Fleet | None = None

    def check_joining(self) -> None:
        """Raise if the broker or one of the devices that are to join has ended."""
        self.check()
        if self.fleet is not None:
            self.fleet.check()

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
