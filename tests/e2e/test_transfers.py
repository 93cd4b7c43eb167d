"""Large transfers through a real broker that is killed, and over connections that are cut.

What travels again is counted by the receiver's ledger: at most a window of chunks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from broker_server.publishing.broadcast import Broadcast
from broker_server.publishing.history import Frame
from edge_runtime.artifact import pack_program
from edge_runtime.codec import encode, parse_coding
from edge_runtime.contents import Contents
from edge_runtime.errors import WireError
from edge_runtime.parts import Tensors
from edge_runtime.protocol.blob import BlobShelf, digest, kind_of_expert, make_ref
from edge_runtime.protocol.ledger import Direction, Ledger
from edge_runtime.protocol.mailbox import DeviceMailbox, ServerMailbox
from edge_runtime.protocol.messages import CHUNK_BYTES, Artifact, Assign, Chunk, Fetch, Welcome
from edge_runtime.protocol.transfer import WINDOW, Download, serve
from edge_runtime.supply import Supply
from edge_runtime.tensor_blob import pack_tensors
from edge_runtime.transport.mqtt import MqttLink
from tests.conftest import require_broker
from tests.e2e.brokers import Mosquitto, Proxy
from tests.edge_runtime.examples import ASSIGN

FEDERATION, NAME = "fed", "dev"
MIB = 1 << 20
DOWN_BYTES, UP_BYTES = 32 * MIB, 16 * MIB
ALLOWED = WINDOW * CHUNK_BYTES
SIDES = ("connection", "server's connection")  # which of them is cut
POLL_S = 0.05
LIMIT_S = 90.0  # only bounds how long a failure takes


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    require_broker("mosquitto")
    broker = Mosquitto(tmp_path)
    yield broker
    broker.kill()


@pytest.fixture
def proxy(mosquitto: Mosquitto) -> Iterator[Proxy]:
    proxy = Proxy(mosquitto.port)
    yield proxy
    proxy.close()


class Server(threading.Thread):
    """Publishes frames as a server does in a round, until it is closed."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.frames: dict[bytes, Frame] = {}
        self.mailbox = ServerMailbox(MqttLink("127.0.0.1", port, "fm-server"), FEDERATION, Ledger())
        self.broadcast = Broadcast(self.mailbox, self.frames.get)
        self._over = threading.Event()

    def frame(self, kind: str, data: bytes) -> Frame:
        frame = Frame.of(kind, data, ())
        self.frames[frame.ref.digest] = frame
        return frame

    def part(self, kind: str, tensors: Tensors) -> Artifact:
        data = encode(tensors, parse_coding("raw"), np.random.default_rng(0), described=True)
        return Artifact(digest(pack_tensors(tensors)), b"", [self.frame(kind, data).ref])

    def assign(self) -> Assign:
        """Work with a backbone of `DOWN_BYTES`, and small parts."""
        rng = np.random.default_rng(0)
        program = rng.bytes(1000)
        frame = self.frame("program", pack_program(program))
        programs = Artifact(digest(program), b"", [frame.ref])
        parts = {
            kind: {"w": rng.normal(size=size // 4).astype(np.float32)}
            for kind, size in (("backbone", DOWN_BYTES), ("gate", 64), ("expert:1", 64))
        }
        return dataclasses.replace(
            ASSIGN,
            experts=[1],
            training_program=programs,
            evaluation_program=programs,
            backbone=self.part("backbone", parts["backbone"]),
            gate=self.part("gate", parts["gate"]),
            expert_parts=[self.part(kind_of_expert(1), parts["expert:1"])],
        )

    def run(self) -> None:
        names = set(self.frames)
        self.broadcast.offer(frame.ref for frame in self.frames.values())
        while not self._over.is_set():
            self.broadcast.pump()
            received = self.mailbox.receive(min(POLL_S, self.broadcast.next_s()))
            if received is not None and isinstance(received[1], Fetch):
                self.broadcast.ask(received[1], names)

    def close(self) -> None:
        self._over.set()
        self.join()
        self.mailbox.link.close()


def moved(mailbox: DeviceMailbox | ServerMailbox, kind: str, way: Direction) -> int:
    """Payload bytes of that kind, by the receiver's ledger."""
    rows = [row for row in mailbox.ledger.rows() if (row.kind, row.direction) == (kind, way)]
    return sum(row.payload_bytes for row in rows)


class Once:
    """Does something the first time that half of a transfer has come."""

    def __init__(self, half_bytes: int, act: Callable[[], None]) -> None:
        self.done = False
        self._half_bytes, self._act = half_bytes, act

    def look(self, moved_bytes: int) -> None:
        if not self.done and moved_bytes >= self._half_bytes:
            self.done = True
            self._act()


def restart(broker: Mosquitto) -> None:
    broker.kill()
    broker.start()


@pytest.mark.parametrize("event", ["nothing", "broker", "connection", "server's connection"])
def test_a_large_part_survives(event: str, mosquitto: Mosquitto, proxy: Proxy) -> None:
    server = Server(proxy.port if event.startswith("server") else mosquitto.port)
    assign = server.assign()
    port = proxy.port if event == "connection" else mosquitto.port
    link = MqttLink("127.0.0.1", port, "fm-device")
    mailbox = DeviceMailbox(link, FEDERATION, NAME, Ledger())
    contents = Contents(BlobShelf(4 * DOWN_BYTES), None)
    supply = Supply(
        assign, Welcome("s", CHUNK_BYTES, True), contents, mailbox, clock=time.monotonic
    )
    acts = {"nothing": lambda: None, "broker": lambda: restart(mosquitto)}
    half = Once(DOWN_BYTES // 2, acts.get(event, proxy.cut))
    server.start()
    try:
        deadline = time.monotonic() + LIMIT_S
        supply.ask()
        while not supply.complete:
            assert time.monotonic() < deadline
            message = mailbox.receive(min(POLL_S, supply.next_ask_s()))
            if isinstance(message, Chunk):
                with contextlib.suppress(WireError):  # one that came twice
                    supply.accept(message)
            half.look(moved(mailbox, "backbone", "down"))
            supply.ask()
    finally:
        server.close()
        link.close()
    assert half.done
    assert contents.get(assign.backbone.digest) is not None
    frame = server.frames[assign.backbone.frames[0].digest]
    again = moved(mailbox, "backbone", "down") - len(frame.data)
    assert 0 <= again <= (0 if event == "nothing" else ALLOWED)
    # The server sent a chunk once, but for those that the broker lost.
    sent = moved(server.mailbox, "backbone", "down") - len(frame.data)
    assert 0 <= sent <= (len(frame.data) if event == "broker" else ALLOWED)


@pytest.mark.parametrize("event", ["nothing", "broker", "connection", "server's connection"])
def test_a_large_update_survives(event: str, mosquitto: Mosquitto, proxy: Proxy) -> None:
    """As the server's `Intake` fetches it, and the device's `Agent` serves it."""
    update = np.random.default_rng(1).bytes(UP_BYTES)
    ref, sections = make_ref(update), [("backbone", UP_BYTES - 1), ("gate", 1)]
    ports = [proxy.port if event == side else mosquitto.port for side in SIDES]
    links = [MqttLink("127.0.0.1", port, f"fm-{i}") for i, port in enumerate(ports)]
    device = DeviceMailbox(links[0], FEDERATION, NAME, Ledger())
    server = ServerMailbox(links[1], FEDERATION, Ledger())
    server.know(NAME)
    server.learn(NAME, ref, sections)
    device.learn(ref, sections)
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            fetch = device.receive(POLL_S)
            if isinstance(fetch, Fetch):
                with contextlib.suppress(WireError):  # busy: it will be asked again
                    for part in serve(
                        fetch, {ref.digest: update}.get, CHUNK_BYTES, has_room=links[0].has_room
                    ):
                        device.send(part)

    acts = {"nothing": lambda: None, "broker": lambda: restart(mosquitto)}
    half = Once(UP_BYTES // 2, acts.get(event, proxy.cut))
    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        download, deadline = Download([ref], CHUNK_BYTES), time.monotonic() + LIMIT_S
        while not download.complete:
            now_s = time.monotonic()
            assert now_s < deadline
            if wants := download.wants(now_s).all:
                server.send(NAME, Fetch(wants))
            received = server.receive(POLL_S)
            if received is not None and isinstance(received[1], Chunk):
                with contextlib.suppress(WireError):
                    download.accept(received[1], time.monotonic())
            half.look(moved(server, "backbone", "up"))
    finally:
        over.set()
        thread.join()
        for link in links:
            link.close()
    assert half.done and download.take(ref.digest) == update
    kinds = dict(sections)
    rows = [row for row in server.ledger.rows() if row.kind in kinds and row.direction == "up"]
    again = sum(row.messages for row in rows) - ref.chunks(CHUNK_BYTES)
    assert 0 <= again <= (0 if event == "nothing" else WINDOW)
