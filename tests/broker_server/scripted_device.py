"""Devices for the tests of the server's end of the conversation: honest by default, no threads."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from edge_runtime.codec import known_codecs
from edge_runtime.errors import WireError
from edge_runtime.parts import ModelParts
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import DeviceMailbox
from edge_runtime.protocol.messages import (
    Assign,
    Chunk,
    Fetch,
    Gone,
    Hello,
    Message,
    Report,
    Rollcall,
    Welcome,
    pack,
    same_work,
)
from edge_runtime.protocol.topics import up_topic
from edge_runtime.protocol.transfer import serve
from edge_runtime.transport.memory_link import MemoryLink
from tests.broker_server.sample_model import SAMPLES, changes, encode, make_report
from tests.edge_runtime.driven import World

FEDERATION = "fed"
HELLO = Hello(
    session="",
    samples=SAMPLES,
    test_samples=2,
    shape=[4],
    labels=3,
    trainer="executorch",
    machine="x86_64",
    cores=2.0,
    memory_available_bytes=1 << 30,
    version="0.1",
    link="",
    board="",
    memory_kills=-1,
    codecs=known_codecs(),
    held=[],
)


class Device:
    """Does at once what a device does: says hello, answers work after `delay_s`, serves chunks."""

    def __init__(
        self, world: World, name: str, model: ModelParts, seed: int = 0, delay_s: float = 0.0
    ) -> None:
        self.world, self.name, self.model, self.seed = world, name, model, seed
        self.delay_s = delay_s
        self.hello = HELLO
        will = (up_topic(FEDERATION, name), pack(Gone("connection lost")))
        self.link = MemoryLink(world.broker, name, will)
        self.mailbox = DeviceMailbox(self.link, FEDERATION, name, Ledger())
        self.received: list[Message] = []
        self.served: Counter[tuple[bytes, int]] = Counter()
        self.report: Report | None = None
        self.blobs: Mapping[bytes, bytes] = {}
        self.update: dict[str, bytes] = {}
        self.back_s: float | None = None
        self._due_s: float | None = None
        self._greeted = 0
        world.actors.append(self.step)

    def step(self) -> None:
        """What it does while the server waits."""
        if self.back_s is not None and self.world.now_s >= self.back_s:
            self.back_s = None
            self.link.restore()
        if not self.link.connected:
            return
        if self._greeted != self.link.connections:
            self._greeted = self.link.connections
            self.mailbox.send(self.hello)
        while self.link.connected and (message := self.mailbox.receive(0)) is not None:
            self.received.append(message)
            self.on(message)
        if self._due_s is not None and self.world.now_s >= self._due_s:
            self._due_s = None
            assert self.report is not None
            self.mailbox.send(self.report)

    def on(self, message: Message) -> None:
        """What it does about a message."""
        match message:
            case Rollcall():
                self.mailbox.send(self.hello)
            case Welcome():
                self.mailbox.chunk_bytes = message.chunk_bytes
            case Assign():
                self.work(message)
            case Fetch():
                self.serve(message)

    def work(self, assign: Assign) -> None:
        """Answer: at once, later, or again what was answered before."""
        again = self.report is not None and same_work(self.report, assign)
        if not again:
            self.prepare(assign)
            self._due_s = self.world.now_s + self.delay_s
        elif self._due_s is None:
            self._due_s = self.world.now_s

    def prepare(self, assign: Assign) -> None:
        """Make the update and the report."""
        update = encode(changes(self.seed, self.model, assign.experts), assign.codec)
        if assign.local_gate:
            del update["gate"]
        self.answer_with(assign, update)

    def answer_with(self, assign: Assign, update: dict[str, bytes]) -> None:
        self.update = update
        self.report = make_report(assign, update, self.hello.samples)
        self.blobs = {self.report.update.digest: self.data}

    @property
    def data(self) -> bytes:
        """The update as it travels."""
        return b"".join(self.update.values())

    def change_report(self, **fields: object) -> None:
        assert self.report is not None
        self.report = dataclasses.replace(self.report, **fields)  # type: ignore[arg-type]

    def serve(self, fetch: Fetch) -> None:
        try:
            for chunk in serve(fetch, self.blobs.get, self.mailbox.chunk_bytes):
                self.send_chunk(chunk)
        except WireError:
            pass  # asked for what it does not hold (any more)

    def send_chunk(self, chunk: Chunk) -> None:
        self.served[chunk.digest, chunk.index] += 1
        self.mailbox.send(chunk)

    def got(self, kind: type) -> list[Message]:
        return [message for message in self.received if isinstance(message, kind)]
