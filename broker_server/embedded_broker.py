"""The embedded broker: ``python -m broker_server.embedded_broker HOST PORT``.

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

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker

from edge_runtime.errors import WireError
from edge_runtime.messages import MAX_MESSAGE_BYTES

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
    """amqtt, with bounded messages, and take-over also for clean sessions."""

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
