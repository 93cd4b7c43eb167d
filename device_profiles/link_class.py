"""Classes of links: what bytes cost on them, in seconds and joules, from published figures.

The energy is the radio's (or the wire's) alone, while it sends or receives at the rate given here:
no joining, no signalling, no waiting for the network, no board. The time is that of the bytes alone
too, without latency. So both are the least that the bytes cost, good to compare rounds with each
other. The rates are the best that a class reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Figure:
    """A constant and where it is from; `assumed` where nobody published it as it stands."""

    value: float
    source: str
    assumed: bool = False


@dataclass(frozen=True)
class LinkClass:
    """A kind of link, as a device sees it.

    Rates in bit/s, powers in W while bytes move. `duty_cycle` is the share of the time that one may
    send.
    """

    name: str
    title: str
    up_rate: Figure
    down_rate: Figure
    up_power: Figure
    down_power: Figure
    duty_cycle: Figure | None = None

    @property
    def figures(self) -> dict[str, Figure]:
        """The constants by name, with their units, as far as they are known."""
        known = {
            "up, bit/s": self.up_rate,
            "down, bit/s": self.down_rate,
            "sending, W": self.up_power,
            "receiving, W": self.down_power,
            "duty cycle": self.duty_cycle,
        }
        return {name: figure for name, figure in known.items() if figure is not None}


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


_ETHERNET = "94.4 Mbit/s, iperf, Raspberry Pi's 10/100 port (jeffgeerling.com, Getting Gigabit \
Networking on a Raspberry Pi 2, 3 and B+)"
_PHY = "a 10/100 PHY uses 110 to over 300 mW, sending or not (Texas Instruments, SSZTAM3); 0.3"
_WIFI = "44.5 Mbit/s, iperf, 802.11n at 2.4 GHz, very strong signal (jeffgeerling.com, as for \
Ethernet); a Pi Zero 2 W has the same class of radio: one antenna, 2.4 GHz"
_WIFI_POWER = "Microchip ATWILC3000A, 8.2.2 Current Consumption, 3.3 V, 802.11n MCS 7: {}"
_WIFI_WHOLE = (
    "; whole conventional equipment takes 1 to 17 J/MB (macnica.eu, Hi-Q News), that is 7 \
to 110 times as much"
)
_LTE_M = "Cat-M1, half duplex, with scheduling delays: 300 kbit/s down, 375 kbit/s up \
(rfwireless-world.com, LTE-M device categories)"
_NB_IOT = "Cat-NB1: about 26 kbit/s down, 62 kbit/s up at most (haltian.com, NB1 vs. NB2; \
blog.mbedded.ninja, Cellular). A field test saw 264 bit/s (Strathclyde 2021)"
_LORA = "EU868 DR5 (SF7, 125 kHz): 5470 bit/s (LoRaWAN Regional Parameters; RAK docs), \
before LoRaWAN's 13 bytes a frame of at most 222"
_LORA_POWER = "Microchip SAM R34 (SX1276 inside), 7.4.1 Current Consumption, 868 MHz, 3.3 V: {}"

LINKS: Mapping[str, LinkClass] = MappingProxyType(
    {
        link.name: link
        for link in (
            LinkClass(
                name="ethernet",
                title="Ethernet, 100 Mbit/s",
                up_rate=Figure(94.4e6, _ETHERNET),
                down_rate=Figure(94.4e6, _ETHERNET),
                up_power=Figure(0.3, _PHY),
                down_power=Figure(0.3, _PHY),
            ),
            LinkClass(
                name="wifi",
                title="Wi-Fi, 802.11n",
                up_rate=Figure(44.5e6, _WIFI),
                down_rate=Figure(44.5e6, "as up; measured one way only", True),
                up_power=Figure(0.83, _WIFI_POWER.format("sending 229 and 24 mA") + _WIFI_WHOLE),
                down_power=Figure(0.28, _WIFI_POWER.format("receiving 60.5 and 24 mA")),
            ),
            LinkClass(
                name="lte-m",
                title="LTE-M",
                up_rate=Figure(375e3, _LTE_M),
                down_rate=Figure(300e3, _LTE_M),
                up_power=Figure(
                    0.89,
                    "Nordic nRF9160 Product Specification, Modem current consumption: 115 mA on "
                    "average at 180 kbit/s up and 23 dBm, 3.7 V: 19 µJ a byte, here at 375 kbit/s",
                ),
                down_power=Figure(
                    0.28,
                    "as for up, but 45 mA, what sending at 0 dBm takes: 7.4 µJ a byte, here at "
                    "300 kbit/s; no figure for receiving was found",
                    True,
                ),
            ),
            LinkClass(
                name="nb-iot",
                title="NB-IoT",
                up_rate=Figure(62e3, _NB_IOT),
                down_rate=Figure(26e3, _NB_IOT),
                up_power=Figure(
                    0.5,
                    "3GPP TR 45.820 takes 500 mW for sending (Sauter, From GSM to LTE-Advanced Pro "
                    "and 5G, p. 318). What comes before and after often takes more than the bytes "
                    "(Michelinakis et al., Dissecting Energy Consumption of NB-IoT Devices)",
                ),
                down_power=Figure(
                    0.15,
                    "Nordic nRF9160 Product Specification: 40 mA on average, at 0 dBm, a third of "
                    "the time sending, a third receiving, 3.7 V; taken for receiving",
                    True,
                ),
            ),
            LinkClass(
                name="lora",
                title="LoRa gateway, DR5",
                up_rate=Figure(5470, _LORA),
                down_rate=Figure(5470, "as up: an answer comes at the same data rate"),
                up_power=Figure(0.137, _LORA_POWER.format("sending at 15 dBm 41.5 mA")),
                down_power=Figure(0.042, _LORA_POWER.format("receiving 12.7 mA")),
                duty_cycle=Figure(
                    0.01,
                    "under 1 % on the default channels (LoRaWAN Regional Parameters 1.0.3, table "
                    "3); taken for both ways: the gateway is under the same rule",
                ),
            ),
        )
    }
)
"""The classes by name, the fastest first."""
