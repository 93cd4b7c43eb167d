"""What the network interfaces of this process have moved and dropped, as the kernel counts.

They are those of its network namespace: of a real board all, of an emulated device its own one.
Linux only.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COUNTERS = Path("/proc/self/net/dev")

# linux/rtnetlink.h, linux/netlink.h, linux/pkt_sched.h
_GET_QDISC = 38
_REQUEST_DUMP = 0x301
_DONE, _ERROR = 3, 2
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_STATS = struct.Struct("=QII")  # of struct tc_stats: bytes, packets, drops
_TCA_STATS = 3
_ROOT = 0xFFFFFFFF
_MOST_BYTES = 1 << 16
_WAIT_S = 1.0


@dataclass(frozen=True)
class InterfaceUsage:
    """Since the interfaces came up. `drops`: packets, by the interfaces and by their queues."""

    up_bytes: int
    down_bytes: int
    drops: int


def read_interfaces(counters: Path = COUNTERS) -> InterfaceUsage | None:
    """All interfaces but the loopback; None where the kernel does not say, or there is none."""
    try:
        lines = counters.read_text().splitlines()[2:]
    except OSError:
        return None
    up = down = drops = found = 0
    for line in lines:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name.strip() == "lo" or len(fields) < 12:
            continue
        found += 1
        # Received: bytes, packets, errors, drops, and four more; sent: the same.
        down, up = down + int(fields[0]), up + int(fields[8])
        drops += int(fields[3]) + int(fields[11])
    return InterfaceUsage(up, down, drops + _queue_drops()) if found else None


def is_loopback(host: str) -> bool:
    """Whether what goes to `host` passes none of these interfaces."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _queue_drops() -> int:
    """Of the root queue of each interface, which counts those of the queues below it; 0 where the
    kernel does not tell."""
    with contextlib.suppress(OSError):
        return sum(drops for parent, drops in _queues() if parent == _ROOT)
    return 0


def _queues() -> Iterator[tuple[int, int]]:
    """(parent, drops) of each queue."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.settimeout(_WAIT_S)
        size = _HEADER.size + _TCMSG.size
        request = _HEADER.pack(size, _GET_QDISC, _REQUEST_DUMP, 1, 0)
        link.send(request + _TCMSG.pack(0, 0, 0, 0, 0))
        while True:
            data = link.recv(_MOST_BYTES)
            for kind, body in _messages(data):
                if kind in (_DONE, _ERROR):
                    return
                yield _TCMSG.unpack_from(body)[3], _drops(body[_TCMSG.size :])


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        size, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size]
        data = data[_aligned(size) :]


def _drops(attributes: bytes) -> int:
    while len(attributes) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _TCA_STATS:
            drops: int = _STATS.unpack_from(attributes, _ATTRIBUTE.size)[2]
            return drops
        attributes = attributes[max(_aligned(size), _ATTRIBUTE.size) :]
    return 0


def _aligned(size: int) -> int:
    return (size + 3) & ~3
