"""`CountingClient`: paho's MQTT client, with every byte counted and the size of packets bounded."""

from __future__ import annotations

import logging

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

from edge_runtime.protocol.messages import MAX_MESSAGE_BYTES

# A message of any size that is allowed, on any topic, and a packet id.
MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + 2 + 65_535 + 2

_log = logging.getLogger(__name__)


class CountingClient(paho.Client):
    """paho's client; `sent_bytes` and `received_bytes` are totals over all its connections.

    Everything that paho reads or writes passes `_sock_recv` and `_sock_send`, and what they return
    is what the kernel took or gave. Wrapping the socket instead would mean to imitate all that
    paho, `select` and `ssl` ask of one. Both methods are private: `MqttLink` therefore checks on
    every first connection that they were called, and refuses to run uncounted.

    `handled_bytes` are those received without the packet that is half read.

    paho would take in up to 256 MB before anyone can look at a packet. One whose header announces
    more than `MAX_PACKET_BYTES` ends the connection and is counted in `oversized`; with a clean
    session the broker does not send it again.
    """

    sent_bytes = 0
    received_bytes = 0
    handled_bytes = 0
    oversized = 0

    def _sock_send(self, buf: bytes | bytearray) -> int:
        count = super()._sock_send(buf)
        self.sent_bytes += count
        return count

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > MAX_PACKET_BYTES:  # paho asks for the whole rest of a packet
            self.oversized += 1
            raise ConnectionAbortedError(f"a packet of {bufsize} bytes is larger than any message")
        data = super()._sock_recv(bufsize)
        self.received_bytes += len(data)
        return data

    def _packet_read(self) -> MQTTErrorCode:
        try:
            return super()._packet_read()
        finally:
            if not self._in_packet["command"]:  # none has begun since the last one ended
                self.handled_bytes = self.received_bytes

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read packets; bytes that paho cannot decode end the connection, not its thread.

        paho 2.2 returns an error for them by itself, 2.0 and 2.1 raise.
        """
        try:
            return super().loop_read(max_packets)
        except Exception:
            _log.exception("the broker sent bytes that are not MQTT; connecting again")
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
