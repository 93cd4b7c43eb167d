"""The embedded broker: ``python -m broker_server.brokers.embedded_broker HOST PORT``.

amqtt in a process of its own, for machines without mosquitto. It is plain Python and speaks MQTT
3.1.1; nothing is kept when it ends. Unlike mosquitto it does not drop a client that stays silent
beyond its keep-alive, so a device that loses power without closing its connection is noticed by
the round's deadline, not by its last will. A message over our limit ends its sender's connection;
the length of a list of subscriptions is not bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from typing import Any

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.session import Session

from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import MAX_MESSAGE_BYTES

SYS_INTERVAL_S = 1
SHUTDOWN_S = 2.0


class _BoundedReader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt brings no types
    """Reads no payload over `MAX_MESSAGE_BYTES`; amqtt asks for each payload as a whole."""

    async def read(self, n: int = -1) -> bytes:
        if n > MAX_MESSAGE_BYTES:
            # amqtt ends a connection whose reader raises anything that is not its own.
            raise WireError("oversized", f"at most {MAX_MESSAGE_BYTES} bytes, not {n}")
        data: bytes = await super().read(n)
        return data


class EmbeddedBroker(Broker):  # type: ignore[misc]
    """amqtt, with bounded messages, take-over also for clean sessions, and retained messages.

    What it retains amqtt 0.12 sends to every client that connects, if anyone at all subscribed to
    it; it keeps a filter that nobody subscribes to any more, and searches all of them for each
    message; and a client that subscribed is not listened to, its end not noticed, before it has
    acknowledged all that is retained for it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._handovers: set[asyncio.Task[Any]] = set()

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """A client connected over TCP; returns when it has left."""
        await self.external_connected(
            _BoundedReader(reader), StreamWriterAdapter(writer), listener_name
        )

    async def _delete_session(self, client_id: str) -> None:
        """End the connection of a client that connects again, as MQTT-3.1.4-2 asks.

        amqtt only forgets it: the old connection would stay open without its subscriptions, and
        its last will would come long after the client is back.
        """
        session, handler = self._sessions.get(client_id, (None, None))
        if session is not None and handler is not None and session.transitions.is_connected():
            await handler.handle_connection_closed()
            await handler.stop()
        await super()._delete_session(client_id)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Begin to send a client what is retained for one of its own subscriptions."""
        pattern, qos = subscription
        handler = self._get_handler(session)
        if handler is None or all(one is not session for one, _ in self._subscriptions[pattern]):
            return
        exact = not set("+#") & set(pattern)
        topics = {pattern} & self._retained_messages.keys() if exact else self._retained_messages
        for topic in topics:
            if exact or self._matches(topic, pattern):
                kept = self._retained_messages[topic]
                sending = handler.mqtt_publish(topic, kept.data, min(qos, kept.qos or 0), True)
                task = asyncio.ensure_future(sending)
                self._handovers.add(task)
                task.add_done_callback(self._handed_over)

    def _handed_over(self, task: asyncio.Task[Any]) -> None:
        self._handovers.discard(task)
        if not task.cancelled():
            task.exception()  # a client that went away does not answer: nothing to report

    async def _handle_unsubscription(
        self, session: Session, handler: Any, asked: asyncio.Future[Any]
    ) -> None:
        """End subscriptions; filters that nobody uses any more are forgotten."""
        await super()._handle_unsubscription(session, handler, asked)
        for topic in asked.result().topics:
            if not self._subscriptions.get(topic, True):
                del self._subscriptions[topic]


async def main(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    broker = EmbeddedBroker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True},
                "amqtt.plugins.sys.broker.BrokerSysPlugin": {"sys_interval": SYS_INTERVAL_S},
            },
        }
    )
    await broker.start()
    await stopping.wait()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(broker.shutdown(), SHUTDOWN_S)


if __name__ == "__main__":
    # amqtt logs a traceback for each acknowledgement that overtakes its own bookkeeping.
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
