"""`ProbeClient`: one short connection to a broker, to find out what it does.

Unlike `MqttLink` it never connects again: what a broker cannot stand ends the connection, and that
is the answer. It has no thread; packets move while one of its methods waits.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edge_runtime.errors import BrokerError
from edge_runtime.transport.counting_client import CountingClient

CONNECT_S = 10.0
_KEEPALIVE_S = 60


class Arrived(NamedTuple):
    """A message, and what the connection had received before it, bytes."""

    topic: str
    payload: bytes
    retained: bool  # kept by the broker from before the subscription
    bytes_before: int


class ProbeClient:
    """A connection with a name of its own and a clean session; a context manager."""

    def __init__(self, host: str, port: int, connect_s: float = CONNECT_S) -> None:
        """Connect; `BrokerError` if no broker accepts us within `connect_s`."""
        self._arrived: deque[Arrived] = deque()
        self._answers: dict[int, list[bool]] = {}  # to SUBSCRIBE packets, by their id
        self._unacknowledged: set[int] = set()
        self._accepted: bool | None = None
        self._alive = True
        self._client = client = CountingClient(
            CallbackAPIVersion.VERSION2,
            f"flexmoe-probe-{secrets.token_hex(6)}",
            True,
            protocol=MQTTProtocolVersion.MQTTv311,
        )
        client.suppress_exceptions = True
        client.connect_timeout = connect_s
        client.max_inflight_messages_set(0)  # no limit of our own
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        try:
            client.connect(host, port, _KEEPALIVE_S)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BrokerError(
                f"no MQTT broker answers at {host}:{port} ({reason}); check the address"
            ) from None
        self._wait(lambda: self._accepted is not None, connect_s)
        if not self._accepted:
            self.close()
            raise BrokerError(
                f"what listens at {host}:{port} does not accept this client; check that it is an "
                "MQTT 3.1.1 broker, and its access rules"
            )

    @property
    def sent_bytes(self) -> int:
        """All bytes that went into the socket."""
        return self._client.sent_bytes

    @property
    def received_bytes(self) -> int:
        """All bytes that came out of the socket."""
        return self._client.received_bytes

    @property
    def alive(self) -> bool:
        """Whether the connection has not ended."""
        return self._alive

    def subscribe(self, topics: Sequence[str], qos: int, timeout_s: float = CONNECT_S) -> bool:
        """Whether the broker grants all of these."""
        result, packet_id = self._client.subscribe([(topic, qos) for topic in topics])
        if result != MQTTErrorCode.MQTT_ERR_SUCCESS or packet_id is None:
            return False
        self._wait(lambda: packet_id in self._answers, timeout_s)
        return all(self._answers.get(packet_id, [False]))

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Begin to send, at QoS 1."""
        if self._alive:
            info = self._client.publish(topic, payload, qos=1, retain=retain)
            self._unacknowledged.add(info.mid)

    def flush(self, timeout_s: float) -> bool:
        """Whether all is acknowledged within the time and the connection lives."""
        return self._wait(lambda: not self._unacknowledged, timeout_s) and self._alive

    def receive(self, timeout_s: float) -> Arrived | None:
        """The next message; None after the time, or when the connection has ended."""
        self._wait(lambda: bool(self._arrived), timeout_s)
        return self._arrived.popleft() if self._arrived else None

    def close(self) -> None:
        """Leave in good order."""
        self._client.disconnect()
        self._wait(lambda: not self._client.is_connected(), 1.0)
        self._alive = False

    def __enter__(self) -> ProbeClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Move packets until `done`, the time is over or the connection ends."""
        deadline = time.monotonic() + timeout_s
        while not done() and self._alive and (left_s := deadline - time.monotonic()) > 0:
            if self._client.loop(left_s) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._alive = False
        return done()

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `MqttLink` does

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        self._accepted = not reason.is_failure

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: list[Any], properties: Any
    ) -> None:
        self._answers[mid] = [not reason.is_failure for reason in reasons]

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any
    ) -> None:
        self._unacknowledged.discard(mid)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        before = self._client.handled_bytes  # this packet is not handled yet
        self._arrived.append(Arrived(message.topic, bytes(message.payload), message.retain, before))
