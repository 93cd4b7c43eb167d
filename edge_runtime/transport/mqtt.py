"""`MqttLink`: the `Link` over MQTT 3.1.1 at QoS 1, by paho-mqtt 2.x.

paho runs the network in a thread of its own. Its callbacks here only count and enqueue, because a
slow callback makes the client miss its keep-alive and lose the connection (paho #379), and an
exception in one would end the thread without a word (paho #894).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edge_runtime.errors import BrokerError
from edge_runtime.transport.contest import Contest
from edge_runtime.transport.counting_client import CountingClient
from edge_runtime.transport.inbox import INBOX_PACKETS, Inbox
from edge_runtime.transport.link import has_room
from edge_runtime.transport.packet import Packet, outgoing
from edge_runtime.transport.subscriptions import Subscriptions

RECONNECT_MIN_S = 1
RECONNECT_MAX_S = 30
SUBSCRIBE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


class MqttLink:
    """A connection to an MQTT broker that renews itself. See `Link` for the contract."""

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        keepalive_s: int = 30,
        connect_timeout_s: float = 10,
        inbox_packets: int = INBOX_PACKETS,
    ) -> None:
        """Connect, and return once the broker has accepted; `BrokerError` if it does not.

        `will` is a topic and payload that the broker publishes if this client vanishes.
        """
        self._where = f"{host}:{port}"
        self._inbox = Inbox(inbox_packets)
        self._changed = threading.Condition()
        self._accepted = self._ready = self._closed = False
        self._connections = 0
        self._contest = Contest()
        self._failure = ""  # why the broker refused or ended the connection
        self._cut_off = 0  # how many connections an oversized packet ended
        self._unacknowledged: dict[int, int] = {}  # payload sizes by packet id
        self._early: set[int] = set()  # acknowledged before `publish` knew the packet id
        self._subscriptions = Subscriptions()

        self._client = client = CountingClient(
            CallbackAPIVersion.VERSION2, client_id, True, protocol=MQTTProtocolVersion.MQTTv311
        )
        client.suppress_exceptions = True
        client.connect_timeout = connect_timeout_s
        client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)
        client.on_socket_open = self._on_socket_open
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        if will is not None:
            client.will_set(will[0], will[1], qos=1)
        self._open(host, port, keepalive_s, connect_timeout_s)

    @property
    def sent_bytes(self) -> int:
        return self._client.sent_bytes

    @property
    def received_bytes(self) -> int:
        return self._client.received_bytes

    @property
    def connections(self) -> int:
        return self._connections

    @property
    def connected(self) -> bool:
        return self._ready

    @property
    def contested(self) -> bool:
        """As in `Link`: another client uses this name, or the broker refuses what we send."""
        return self._contest.found

    @property
    def refused(self) -> str:
        return self._subscriptions.silent

    @property
    def overflowed(self) -> int:
        return self._inbox.overflowed

    @property
    def oversized(self) -> int:
        return self._inbox.oversized + self._client.oversized

    def settled_bytes(self) -> tuple[int, int]:
        sent, received = self._client.sent_bytes, self._client.handled_bytes
        # The inbox comes last: a packet that arrives in between is left out.
        waiting, acks = self._inbox.waiting_bytes
        return sent - acks, received - waiting

    def subscribe(self, pattern: str) -> None:
        wanted = self._subscriptions
        with self._changed:
            wanted.add(pattern)
            self._ask([pattern])
            answered = self._changed.wait_for(
                lambda: wanted.is_granted(pattern) or wanted.is_refused(pattern),
                SUBSCRIBE_TIMEOUT_S,
            )
            if wanted.is_granted(pattern):
                return
            wanted.remove(pattern)
        what = "refuses" if answered else "does not acknowledge"
        what = f"the broker at {self._where} {what} the subscription to {pattern}"
        raise BrokerError(f"{what}; check the broker's access rules and its log")

    def listen(self, topics: Sequence[str]) -> None:
        with self._changed:
            self._subscriptions.listen(topics)
            # Before the broker has accepted it would be asked twice, and answer twice.
            if self._accepted and topics:
                self._ask(list(topics))

    def unlisten(self, topics: Sequence[str]) -> None:
        with self._changed:
            self._subscriptions.unlisten(topics)
            if self._accepted and topics:
                self._client.unsubscribe(list(topics))

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> Packet:
        packet = outgoing(topic, payload)
        if self._closed:
            raise BrokerError("this link is closed; open a new one to publish")
        # The lock must not be held over `publish`, whose own lock the network thread holds when it
        # takes ours; so the acknowledgement may arrive before `publish` returns.
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise BrokerError(f"too many packets wait for {self._where}; is the broker reachable?")
        with self._changed:
            if info.mid not in self._early:
                self._unacknowledged[info.mid] = len(payload)
            self._early.discard(info.mid)
        return packet

    def has_room(self) -> bool:
        with self._changed:
            return has_room(self._unacknowledged.values())

    def receive(self, timeout_s: float) -> Packet | None:
        return self._inbox.get(timeout_s)

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._unacknowledged, max(0.0, timeout_s))

    def close(self) -> None:
        if self._closed:
            return
        if self._ready:
            self.flush(CLOSE_TIMEOUT_S)
        self._closed = True
        self._shut_down()

    def _open(self, host: str, port: int, keepalive_s: int, timeout_s: float) -> None:
        try:
            self._client.connect(host, port, keepalive_s)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BrokerError(
                f"no MQTT broker answers at {self._where} ({reason}); start one with "
                "`flexmoe broker`, or check the address"
            ) from None
        self._client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._connections or self._failure, timeout_s)
            accepted, failure = self._connections > 0, self._failure
        if accepted and self.sent_bytes and self.received_bytes:
            return
        self._closed = True
        self._shut_down()
        if accepted:
            raise BrokerError(
                "this version of paho-mqtt hides its socket, so bytes cannot be counted; "
                "install paho-mqtt>=2.0,<3"
            )
        raise BrokerError(
            f"what listens at {self._where} does not accept this client "
            f"({failure or f'no answer in {timeout_s:g} s'}); check that it is an MQTT 3.1.1 broker"
        )

    def _shut_down(self) -> None:
        """Say goodbye and stop the network thread, within a few seconds whatever the network."""
        self._client.disconnect()
        with self._changed:
            self._changed.wait_for(lambda: not self._ready, CLOSE_TIMEOUT_S)
        self._inbox.close()
        sock = self._client.socket()
        if isinstance(sock, socket.socket):  # the goodbye may be stuck: wake the thread
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        # `loop_stop` joins without a limit, and the thread may sit in a connect for 10 s.
        stopper = threading.Thread(target=self._client.loop_stop, daemon=True)
        stopper.start()
        stopper.join(CLOSE_TIMEOUT_S)

    def _ask(self, patterns: list[str]) -> None:
        """Send a SUBSCRIBE; call with the lock held, so that its answer finds the entry."""
        result, mid = self._client.subscribe([(pattern, 1) for pattern in patterns])
        if result == MQTTErrorCode.MQTT_ERR_SUCCESS and mid is not None:
            self._subscriptions.asked(mid, patterns)

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # Small packets (acks, fetches) must not wait for the ack of the one before.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_pre_connect(self, client: paho.Client, userdata: Any) -> None:
        with self._changed:
            self._forget_connection()

    def _forget_connection(self) -> None:
        self._accepted = self._ready = False
        self._subscriptions.lost()

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        with self._changed:
            if reason.is_failure:
                self._failure = f"refused: {reason}"
                _log.warning("the broker at %s refuses this client: %s", self._where, reason)
            else:
                self._contest.connected(time.monotonic())
                self._accepted = True
                if names := self._subscriptions.all():
                    self._ask(names)
                if self._subscriptions.in_place:
                    self._become_ready()
            self._changed.notify_all()

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: list[Any], properties: Any
    ) -> None:
        with self._changed:
            self._subscriptions.answered(mid, [not reason.is_failure for reason in reasons])
            # Only now does the owner hear of a reconnect: what it says next will be answered, and
            # the answer must find the subscriptions in place.
            if not self._ready and self._subscriptions.in_place:
                self._become_ready()
            self._changed.notify_all()

    def _become_ready(self) -> None:
        self._ready = True
        self._connections += 1

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        with self._changed:
            self._forget_connection()
            self._failure = self._failure or f"connection ended: {reason}"
            if self._client.oversized > self._cut_off:
                self._cut_off = self._client.oversized  # our own doing
            elif not self._closed:
                self._contest.lost(time.monotonic())
            self._changed.notify_all()

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any
    ) -> None:
        with self._changed:
            # Whoever waits in `flush` counts next: with this packet, which is whole.
            self._client.handled_bytes = self._client.received_bytes
            if self._unacknowledged.pop(mid, None) is None:
                self._early.add(mid)
            self._changed.notify_all()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        # A topic that is not UTF-8 raises here; paho logs it and goes on (suppress_exceptions).
        self._inbox.put(Packet.of(message.topic, bytes(message.payload), message.qos))
