"""`Packet`: one payload on its way, and exactly what it costs on the wire."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import MAX_MESSAGE_BYTES

PUBACK_BYTES = 4
_LARGEST_REMAINING_LENGTH = 268_435_455


@dataclass(frozen=True)
class Packet:
    """One payload on one topic, and what it costs on the wire, its PUBACK apart."""

    topic: str
    payload: bytes
    wire_bytes: int
    ack_bytes: int

    @classmethod
    def of(cls, topic: str, payload: bytes, qos: int = 1) -> Packet:
        """The packet that carries `payload` on `topic`."""
        wire_bytes = publish_packet_bytes(topic, len(payload), qos)
        return cls(topic, payload, wire_bytes, PUBACK_BYTES if qos else 0)


def publish_packet_bytes(topic: str, payload_bytes: int, qos: int = 1) -> int:
    """Size of an MQTT 3.1.1 PUBLISH packet (section 3.3 of the standard).

    One type byte, the remaining length in base 128 (1 to 4 bytes), the topic behind its 2-byte
    length, a 2-byte packet id at QoS 1 and 2, and the payload.
    """
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + payload_bytes
    if remaining > _LARGEST_REMAINING_LENGTH:
        raise ValueError(f"an MQTT packet holds {_LARGEST_REMAINING_LENGTH} bytes, not {remaining}")
    length_bytes = 1 + (remaining >= 1 << 7) + (remaining >= 1 << 14) + (remaining >= 1 << 21)
    return 1 + length_bytes + remaining


def outgoing(topic: str, payload: bytes) -> Packet:
    """The packet to publish; `WireError` if the payload is larger than a message may be.

    A broker answers too large a packet by ending the connection, and at QoS 1 a client sends it
    again after each reconnect: one such packet would end a device. So it must not get that far.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise WireError(
            "oversized", f"{len(payload)} bytes; a message has at most {MAX_MESSAGE_BYTES}"
        )
    return Packet.of(topic, payload)
