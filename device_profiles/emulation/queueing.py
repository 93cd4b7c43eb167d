"""The queueing disciplines of one end of a link: `tc tbf` for its rate, `tc netem` for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.transport.lane import SEGMENT_BYTES
from edge_runtime.transport.shape import Shape

FRAME_BYTES = 1514
"""A full Ethernet frame as the kernel counts it; `SEGMENT_BYTES` of it are payload of TCP."""
FRAMES_PER_PAYLOAD = FRAME_BYTES / SEGMENT_BYTES
OFFLOAD_BPS = 150e6
"""From here on TCP hands over many packets as one; see `has_offload`."""
_BURST_S = 0.01
_QUEUE_S = 1.0
_LEAST_QUEUE_BYTES = 24 << 10
_UNLIMITED_PACKETS = 20_000  # in the delay line of a link without a rate


@dataclass(frozen=True)
class EndShape:
    """What one end of a link does: bit/s of TCP payload (0 without limit), delay, loss."""

    rate_bps: float = 0.0
    delay_s: float = 0.0
    loss: float = 0.0


def qdiscs(interface: str, shape: Shape, rate_bps: float, netem: bool) -> Sequence[str]:
    """The commands of `tc` that shape what `interface` sends, to `rate_bps` of TCP payload.

    With `netem` they do the delay and loss of `shape` as well. netem's dice cannot be seeded by
    the kernels and tools of today's distributions, so `shape.seed` is not used.
    """
    lines: list[str] = []
    parent = "root"
    frame_bps = math.ceil(rate_bps * FRAMES_PER_PAYLOAD)
    if frame_bps:
        lines.append(
            f"qdisc add dev {interface} root handle 1: tbf rate {frame_bps}bit "
            f"burst {_burst_bytes(frame_bps)} limit {_queue_bytes(frame_bps)}"
        )
        parent = "parent 1:1"
    if netem and (shape.delay_s or shape.loss):
        options = [f"delay {round(shape.delay_s * 1e6)}us"] if shape.delay_s else []
        options += [f"loss {100 * shape.loss:.6f}%"] if shape.loss else []
        lines.append(
            f"qdisc add dev {interface} {parent} handle 10: netem "
            f"limit {_netem_packets(frame_bps, shape.delay_s)} {' '.join(options)}"
        )
    return lines


def has_offload(shape: Shape, rate_bps: float) -> bool:
    """Whether TCP may hand over many packets as one, so that one core can reach the rate.

    At low rates it must not: at 375 kbit/s such a bundle is longer than the bucket, and the flow
    got 0.83 of the rate with retransmissions instead of all without. netem would lose it whole.
    """
    return not shape.loss and (not rate_bps or rate_bps >= OFFLOAD_BPS)


def shape_of(entries: Iterable[Mapping[str, Any]]) -> EndShape:
    """What the disciplines of one interface do, as ``tc -j qdisc show`` tells them."""
    rate_bps = delay_s = loss = 0.0
    for entry in entries:
        options = entry.get("options", {})
        if entry["kind"] == "tbf":
            rate_bps = 8 * options["rate"] / FRAMES_PER_PAYLOAD  # tc tells bytes a second
        elif entry["kind"] == "netem":
            delay_s = float(options.get("delay", {}).get("delay", 0.0))
            loss = float(options.get("loss-random", {}).get("loss", 0.0))
    return EndShape(rate_bps, delay_s, loss)


def _burst_bytes(frame_bps: int) -> int:
    """Two packets at least; 10 ms of the rate, so that a kernel with a tick of 100 Hz keeps it."""
    return max(2 * FRAME_BYTES, int(frame_bps / 8 * _BURST_S))


def _queue_bytes(frame_bps: int) -> int:
    """A second of the rate, 24 KiB at least.

    TCP's first window alone is 15 kB. Measured at 26 kbit/s both ways at once, the rate without
    what acknowledgements take is 0.98: with 8 and 16 KiB drops cost up to a fifth of it; with 24
    KiB CUBIC and BBR both reach 0.98; with 64 KiB BBR has a round trip of 11 s and 0.77.
    """
    return max(_LEAST_QUEUE_BYTES, int(frame_bps / 8 * _QUEUE_S))


def _netem_packets(frame_bps: int, delay_s: float) -> int:
    """What is on its way and what waits: netem under a bucket holds both."""
    if not frame_bps:
        return _UNLIMITED_PACKETS
    return math.ceil((_queue_bytes(frame_bps) + frame_bps / 8 * delay_s) / FRAME_BYTES)
