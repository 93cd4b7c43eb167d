"""`Network`: a network namespace and a shaped pair of interfaces for each device.

A device's `eth0` is one end of a veth pair, the other end is on this host, and both send through a
token bucket (`tc tbf`): so the host's end is the device's downlink. There is no bridge. All of the
host's ends have one address, that of the broker, with the device's address as their peer. So a
device cannot see another one's packets, no firewall of bridges is in the way, and with neighbours
and addresses given beforehand an idle interface carries nothing.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_profiles.emulation.addresses import MOST_DEVICES, claim_block
from device_profiles.emulation.belongings import Belongings, make_run_token
from device_profiles.emulation.iproute import NAMESPACES, ask, run_batch
from device_profiles.emulation.namespace import socket_in
from device_profiles.emulation.queueing import has_offload, qdiscs, shape_of
from edge_runtime.errors import EmulationError
from edge_runtime.transport.shape import Shape

DEVICE_INTERFACE = "eth0"
# Each pair is a network of its own, so all may have the same two addresses.
_HOST_MAC, _DEVICE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
_INTERFACE_COUNTS = Path("/proc/net/dev")
_PROBE = Shape(8e6, 8e6, delay_s=0.001)
_PROBE_BYTES = 20_000
_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class LinkCounters:
    """Of one device since its network was made, counted at the host's end.

    Bytes of Ethernet frames, from and to the device; `down_drops` packets that found the queue to
    the device full, or that netem lost there.
    """

    up_bytes: int
    down_bytes: int
    down_drops: int

    def since(self, before: LinkCounters | None) -> LinkCounters:
        """What was counted after `before`."""
        if before is None:
            return self
        return LinkCounters(
            self.up_bytes - before.up_bytes,
            self.down_bytes - before.down_bytes,
            self.down_drops - before.down_drops,
        )


@dataclass(frozen=True)
class _Pair:
    """The names of one device's namespace and of the host's end, and the shape of its link."""

    namespace: str
    interface: str
    shape: Shape


class Network:
    """The devices' links, which are removed with the belongings that they are noted among."""

    def __init__(self, host: str, pairs: Mapping[str, _Pair], netem: bool) -> None:
        self.host = host
        """The address at which the devices reach this host: the broker must listen there."""
        self._pairs = pairs
        self._netem = netem

    @classmethod
    def open(
        cls, run: str, shapes: Mapping[str, Shape], belongings: Belongings, netem: bool
    ) -> Network:
        """Make the links of the devices named in `shapes`; `run` is a token like `belongings.run`.

        With `netem` the kernel does delay and loss as well. `EmulationError` if there are no
        devices or too many, a tool or a permission is missing, or the kernel refuses something;
        what was made until then is among the belongings.
        """
        if not 0 < len(shapes) <= MOST_DEVICES:
            raise EmulationError(
                f"a network has 1 to {MOST_DEVICES} devices, not {len(shapes)}; use fewer devices"
            )
        pairs = {
            # An interface's name has at most 15 characters, and a device's may be anything.
            name: _Pair(f"flexmoe-{run}-{index}", f"fm{run}.{index}", shape)
            for index, (name, shape) in enumerate(shapes.items())
        }
        for pair in pairs.values():
            belongings.note("netns", pair.namespace)
            belongings.note("interface", pair.interface)
        run_batch("ip", [f"netns add {pair.namespace}" for pair in pairs.values()])
        run_batch("ip", [line for pair in pairs.values() for line in _make_pair(pair)])
        addresses = claim_block(run, next(iter(pairs.values())).interface).hosts()
        host = next(addresses)
        _connect(host, dict(zip(pairs.values(), addresses, strict=False)))
        network = cls(str(host), pairs, netem)
        network._shape()
        return network

    def namespace(self, name: str) -> Path:
        """The file that a process enters to be at the device's place."""
        return NAMESPACES / self._pairs[name].namespace

    def left(self, name: str) -> Shape | None:
        """What the kernel does not do of the device's shape, and has to be done in user space."""
        shape = self._pairs[name].shape
        if self._netem or not (shape.delay_s or shape.loss):
            return None
        return Shape(0, 0, shape.delay_s, shape.loss, shape.seed)

    def rates(self, name: str) -> Shape:
        """What the kernel says it holds the device's link to; delay and loss are those upwards."""
        pair = self._pairs[name]
        down = shape_of(ask("tc", ["qdisc", "show", "dev", pair.interface]))
        up = shape_of(ask("tc", ["qdisc", "show", "dev", DEVICE_INTERFACE], pair.namespace))
        return Shape(up.rate_bps, down.rate_bps, up.delay_s, up.loss)

    def counters(self) -> Mapping[str, LinkCounters]:
        """What each device's link has carried and dropped until now."""
        moved = dict(_read_interfaces(_INTERFACE_COUNTS.read_text()))
        drops: dict[str, int] = {}
        for entry in ask("tc", ["-s", "qdisc", "show"]):
            # Both the bucket and netem under it count a packet for which there was no room.
            interface, count = entry["dev"], int(entry.get("drops", 0))
            drops[interface] = max(drops.get(interface, 0), count)
        return {
            name: LinkCounters(*moved.get(pair.interface, (0, 0)), drops.get(pair.interface, 0))
            for name, pair in self._pairs.items()
        }

    def _shape(self) -> None:
        host_end = [
            line
            for pair in self._pairs.values()
            for line in qdiscs(pair.interface, pair.shape, pair.shape.down_bps, self._netem)
        ]
        run_batch("tc", host_end)
        for pair in self._pairs.values():
            device_end = qdiscs(DEVICE_INTERFACE, pair.shape, pair.shape.up_bps, self._netem)
            run_batch("tc", device_end, pair.namespace)


def _make_pair(pair: _Pair) -> Sequence[str]:
    """The commands of `ip` that make a pair; the host's end is up then."""
    host_end, device_end = (
        f"address {mac} mtu 1500" + ("" if has_offload(pair.shape, rate) else " gso_max_segs 1")
        for mac, rate in ((_HOST_MAC, pair.shape.down_bps), (_DEVICE_MAC, pair.shape.up_bps))
    )
    return (
        f"link add {pair.interface} {host_end} type veth "
        f"peer name {DEVICE_INTERFACE} {device_end} netns {pair.namespace}",
        *_up(pair.interface),
    )


def _connect(host: ipaddress.IPv4Address, addresses: Mapping[_Pair, ipaddress.IPv4Address]) -> None:
    """Give both ends of each pair their addresses, and tell each its neighbour's."""
    lines: list[str] = []
    for pair, device in addresses.items():
        lines += _address(pair.interface, host, device, _DEVICE_MAC)
    run_batch("ip", lines)
    for pair, device in addresses.items():
        lines = [
            "link set dev lo up",
            *_up(DEVICE_INTERFACE),
            *_address(DEVICE_INTERFACE, device, host, _HOST_MAC),
        ]
        run_batch("ip", lines, pair.namespace)


def _address(
    interface: str, own: ipaddress.IPv4Address, peer: ipaddress.IPv4Address, peer_mac: str
) -> Sequence[str]:
    return (
        f"addr add {own} peer {peer}/32 dev {interface}",
        f"neigh add {peer} lladdr {peer_mac} dev {interface} nud permanent",
    )


def _up(interface: str) -> Sequence[str]:
    """The commands that set an interface up; IPv6, where the kernel has it, must not configure it,
    and has to be told before."""
    quiet = [f"link set dev {interface} addrgenmode none"]
    return [*(quiet if Path("/proc/sys/net/ipv6").exists() else []), f"link set dev {interface} up"]


def _read_interfaces(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, received and sent bytes of each interface in a ``/proc/net/dev``."""
    for line in text.splitlines()[2:]:
        name, _, counts = line.rpartition(":")
        numbers = counts.split()
        yield name.strip(), (int(numbers[0]), int(numbers[8]))


@dataclass(frozen=True)
class NetworkAbilities:
    """Whether devices can have namespaces, and rates, delay and loss by the kernel.

    `why` tells what the first thing that failed said; empty if nothing did.
    """

    namespaces: bool
    tbf: bool
    netem: bool
    why: str


def can_shape() -> NetworkAbilities:
    """Make a link, move bytes through it, and remove it: under half a second if all is well."""
    if os.geteuid() != 0:
        return NetworkAbilities(False, False, False, "network namespaces need root; run as root")
    done: set[str] = set()
    why = ""
    try:
        belongings = Belongings(make_run_token())
        try:
            for ability in _try_abilities(belongings):
                done.add(ability)
        finally:
            left = belongings.remove_all()
        if left:
            raise EmulationError(f"a link that was made to try could not be removed: {left[0]}")
    except EmulationError as error:
        why = str(error)
    return NetworkAbilities("namespaces" in done, "tbf" in done, "netem" in done, why)


def _try_abilities(belongings: Belongings) -> Iterator[str]:
    """Each ability once it is proven; `EmulationError` at the first that is not."""
    network = Network.open(belongings.run, {"probe": Shape(0, 0)}, belongings, netem=False)
    namespace = network.namespace("probe")
    _move_bytes(network, namespace)
    yield "namespaces"
    run_batch("tc", qdiscs(DEVICE_INTERFACE, _PROBE, _PROBE.up_bps, False), namespace.name)
    _move_bytes(network, namespace)
    yield "tbf"
    run_batch("tc", qdiscs("lo", _PROBE, 0, True), namespace.name)
    yield "netem"


def _move_bytes(network: Network, namespace: Path) -> None:
    """Bytes from the device's end to the host's; `EmulationError` if they do not arrive."""
    try:
        with socket.create_server((network.host, 0)) as listener, socket_in(namespace) as device:
            listener.settimeout(_TIMEOUT_S)
            device.settimeout(_TIMEOUT_S)
            device.connect(listener.getsockname())
            host, _ = listener.accept()
            with host:
                host.settimeout(_TIMEOUT_S)
                device.sendall(bytes(_PROBE_BYTES))
                left = _PROBE_BYTES
                while left > 0 and (data := host.recv(left)):
                    left -= len(data)
    except OSError as error:
        raise EmulationError(
            f"a device's network namespace cannot reach {network.host} on this host ({error}); "
            "does a firewall drop packets from interfaces named fm*?"
        ) from None
