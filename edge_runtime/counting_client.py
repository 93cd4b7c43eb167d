"""`CountingClient`: paho's MQTT client, with every byte of its socket counted."""

from __future__ import annotations

import logging

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

_log = logging.getLogger(__name__)


class CountingClient(paho.Client):
    """paho's client; `sent_bytes` and `received_bytes` are totals over all its connections.

    Everything that paho reads or writes passes `_sock_recv` and `_sock_send`, and what they return
    is what the kernel took or gave. Wrapping the socket instead would mean to imitate all that
    paho, `select` and `ssl` ask of one. Both methods are private: `MqttLink` therefore checks on
    every first connection that they were called, and refuses to run uncounted.
    """

    sent_bytes = 0
    received_bytes = 0

    def _sock_send(self, buf: bytes | bytearray) -> int:
        count = super()._sock_send(buf)
        self.sent_bytes += count
        return count

    def _sock_recv(self, bufsize: int) -> bytes:
        data = super()._sock_recv(bufsize)
        self.received_bytes += len(data)
        return data

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read packets; bytes that paho cannot decode end the connection, not its thread.

        paho 2.2 returns an error for them by itself, 2.0 and 2.1 raise.
        """
        try:
            return super().loop_read(max_packets)
        except Exception:
            _log.exception("the broker sent bytes that are not MQTT; connecting again")
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
