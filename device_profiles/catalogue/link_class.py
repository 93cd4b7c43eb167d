"""Classes of links: what bytes cost on them, in seconds and joules, from published figures.

The energy is the radio's (or the wire's) alone, while it sends or receives at the rate given here:
no joining, no signalling, no waiting for the network, no board. The cost in time is that of the
bytes alone too, without latency. So both are the least that the bytes cost, good to compare rounds
with each other. The rates are the best that a class reaches. Latency and loss are for emulation.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_profiles.catalogue.figure import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_ONE,
    Figure,
    FigureKey,
    figures_of,
)


@dataclass(frozen=True)
class LinkClass:
    """A kind of link, as a device sees it. `LINK_KEYS` says what each figure is."""

    name: str
    title: str
    up_rate: Figure
    down_rate: Figure
    up_power: Figure
    down_power: Figure
    latency_s: Figure
    loss: Figure
    duty_cycle: Figure | None = None

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures by name, with their units, as far as they are known."""
        return figures_of(self, LINK_KEYS)

    @property
    def up_joules_per_byte(self) -> float:
        """What the device's end takes to send a byte, J."""
        return 8 * self.up_power.value / self.up_rate.value

    @property
    def down_joules_per_byte(self) -> float:
        """What the device's end takes to receive a byte, J."""
        return 8 * self.down_power.value / self.down_rate.value


LINK_KEYS = (
    FigureKey(
        "up_rate", "up, bit/s", "Payload of TCP from the device to the broker, bit/s.", POSITIVE
    ),
    FigureKey(
        "down_rate", "down, bit/s", "Payload of TCP from the broker to the device, bit/s.", POSITIVE
    ),
    FigureKey(
        "up_power", "sending, W", "What the device's end takes while it sends, W.", NOT_NEGATIVE
    ),
    FigureKey(
        "down_power",
        "receiving, W",
        "What the device's end takes while it receives, W.",
        NOT_NEGATIVE,
    ),
    FigureKey(
        "latency_s", "latency, s", "Delay one way, s: half of what a ping shows.", NOT_NEGATIVE
    ),
    FigureKey(
        "loss",
        "loss",
        "The share of packets that get lost and must be sent again by TCP.",
        BELOW_ONE,
    ),
    FigureKey(
        "duty_cycle",
        "duty cycle",
        "The share of the time that one may send; without it, all the time.",
        UP_TO_ONE,
        True,
    ),
)


@dataclass(frozen=True)
class Cost:
    """What bytes cost on a link; `seconds` include the silence that a duty cycle asks for."""

    seconds: float
    joules: float


def cost(link: LinkClass, up_bytes: float, down_bytes: float) -> Cost:
    """What it costs a device to send and receive so many bytes, one way after the other."""
    up_s, down_s = 8 * up_bytes / link.up_rate.value, 8 * down_bytes / link.down_rate.value
    share = link.duty_cycle.value if link.duty_cycle else 1.0
    joules = up_s * link.up_power.value + down_s * link.down_power.value
    return Cost((up_s + down_s) / share, joules)
