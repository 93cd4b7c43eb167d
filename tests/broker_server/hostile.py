"""Bad messages for a server that is at work: strangers', and those in the names of its devices."""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections import Counter
from collections.abc import Callable

from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import (
    Account,
    Assign,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Holding,
    Message,
    Moved,
    Report,
    Want,
    pack,
    unpack,
)
from edge_runtime.protocol.topics import up_topic
from edge_runtime.transport.memory_link import MemoryLink
from tests.broker_server.scripted_device import FEDERATION, HELLO, Device
from tests.broker_server.scripted_fleet import Fleet
from tests.edge_runtime.examples import EXAMPLES
from tests.edge_runtime.mutations import mutant

BATCH = 1200
STRANGERS = ["nobody", "mallory2", "x" * 64]


class Shouter:
    """Publishes bad messages each time the server waits, and counts those to be dropped.

    What comes on a device's topic is the device's word: in the names of honest devices there is
    only what no device can mean.
    """

    def __init__(self, fleet: Fleet, most: int) -> None:
        self.expected: Counter[str] = Counter()  # drops by client
        self.sent = 0
        self._fleet, self._most = fleet, most
        self._rng = random.Random("shouter")
        self._link = MemoryLink(fleet.world.broker, "shouter")
        self._valid = [pack(message) for message in EXAMPLES.values()]
        self._turn = 0
        fleet.world.actors.insert(0, self.shout)

    def shout(self) -> None:
        self._turn += 1
        if self._turn % 2 or self.sent >= self._most:  # else no time would ever pass
            return
        devices = list(self._fleet.devices.values())
        for _ in range(BATCH):
            device = self._rng.choice(devices)
            match self._rng.randrange(10):
                case 0 | 1 | 2 | 3:
                    self._publish(
                        self._rng.choice(STRANGERS), mutant(self._pool(device), self._rng)
                    )
                case 4 | 5 | 6:
                    payload = mutant(self._pool(device), self._rng)
                    if not _readable(payload):
                        self._publish(device.name, payload)
                case 7:
                    self._publish(self._rng.choice(STRANGERS), pack(self._wrong(device)))
                case 8:
                    self._publish(device.name, pack(self._out_of_place(device)))
                case _:
                    hello = dataclasses.replace(HELLO, session="s", shape=[3, 32, 32])
                    self._publish(self._rng.choice(STRANGERS), pack(hello))

    def _publish(self, client: str, payload: bytes) -> None:
        self._link.publish(up_topic(FEDERATION, client), payload)
        self.sent += 1
        self.expected[client] += not isinstance(_readable(payload), (Hello, Gone))

    def _pool(self, device: Device) -> list[bytes]:
        """What to spoil: examples, and what this device said."""
        said: list[Message] = [device.report] if device.report else []
        for name, data in device.blobs.items():
            said.append(Chunk(name, 0, data[:4096]))
        return [*self._valid, *map(pack, said)]

    def _wrong(self, device: Device) -> Message:
        """A message of this run, from one who is not in it."""
        report = device.report
        if report is None:
            return Account("s", [])
        number = (report.session, report.round, report.attempt)
        return self._rng.choice(
            [
                report,
                Failed(*number, "no", 0),
                Holding(*number, []),
                Fetch([Want(report.update.digest, 0, 4096)]),
                Chunk(report.update.digest, 0, device.data[:4096]),
                Account("s", report.account),
            ]
        )

    def _out_of_place(self, device: Device) -> Message:
        """A message that this device may say, but not here and now."""
        name, session = self._rng.randbytes(16), "s"
        earlier = dataclasses.replace(EXAMPLES[Report], round=0)  # type: ignore[type-var]
        choices: list[Message] = [
            Chunk(name, 0, b"of another blob"),
            Failed("of yesterday", 1, 1, "no", 0),
            Failed(session, 10_000, 1, "no", 0),
            Holding(session, 1, 10_000, [name] * 1024),
            dataclasses.replace(earlier, account=[Moved("expert:99", 0, 0, 0, 0, 0, 0)]),
            Account("of yesterday", []),
        ]
        if device.report is not None:
            update = device.report.update
            choices += [
                Chunk(update.digest, update.chunks(4096), b"beyond the end"),
                Chunk(update.digest, 2**62, bytes(4096)),
                Chunk(update.digest, 0, b"too short"),
            ]
        return self._rng.choice(choices)


def _readable(payload: bytes) -> Message | None:
    try:
        return unpack(payload)
    except WireError:
        return None


class Shuffler(Device):
    """An honest device whose chunks come in any order, some twice; two of them are damaged."""

    spoilt = 0

    def serve(self, fetch: Fetch) -> None:
        chunks = [(want.digest, want.first + i) for want in fetch.wants for i in range(want.count)]
        rng = random.Random(len(chunks))
        rng.shuffle(chunks)
        for name, index in chunks:
            data = self.blobs.get(name)
            if data is None:
                continue
            start = index * self.mailbox.chunk_bytes
            part = data[start : start + self.mailbox.chunk_bytes]
            if self.spoilt < 2:  # three times would be the end of this update
                self.spoilt += index == 0
                part = bytes(len(part)) if index == 0 else part
            for _ in range(rng.choice((1, 1, 2))):
                self.mailbox.send(Chunk(name, index, part))

    def prepare(self, assign: Assign) -> None:
        super().prepare(assign)
        self.spoilt = 0


class Refuser(Device):
    """Says that it cannot do its work."""

    def work(self, assign: Assign) -> None:
        self.mailbox.send(Failed(assign.session, assign.round, assign.attempt, "no", 0))


class Liar(Device):
    """Answers each round with another lie."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.lies: list[Callable[[Assign], None]] = [
            self.bomb, self.not_finite, self.shifted, self.huge, self.absurd, self.other, self.ask,
        ]  # fmt: skip

    def work(self, assign: Assign) -> None:
        self.prepare(assign)
        self.lies[(assign.round - 1) % len(self.lies)](assign)
        assert self.report is not None
        self.mailbox.send(self.report)

    def bomb(self, assign: Assign) -> None:
        """64 MiB in a section of 64 KiB."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = packer.compress(bytes(64 << 20)) + packer.flush()
        self.answer_with(assign, {**self.update, "backbone": b"\x11\x01" + body})

    def not_finite(self, assign: Assign) -> None:
        section = self.update["gate"]
        self.answer_with(
            assign, {**self.update, "gate": section[:2] + b"\xff" * (len(section) - 2)}
        )

    def shifted(self, assign: Assign) -> None:
        """The sections lie about where they end."""
        assert self.report is not None
        first, second, *rest = self.report.sections
        self.change_report(sections=[first + 1, second - 1, *rest])

    def huge(self, assign: Assign) -> None:
        assert self.report is not None
        self.change_report(update=dataclasses.replace(self.report.update, size_bytes=1 << 30))

    def absurd(self, assign: Assign) -> None:
        self.change_report(account=[Moved("expert:4000", 1, 1, 1, 1, 1, 1)])

    def other(self, assign: Assign) -> None:
        """Chunks of another blob than it names."""
        self.blobs = {name: b"?" * len(data) for name, data in self.blobs.items()}

    def ask(self, assign: Assign) -> None:
        """A flood of answers that ask for other work, and of questions."""
        for _ in range(20):
            self.mailbox.send(Holding(assign.session, assign.round, assign.attempt, [bytes(16)]))
            self.mailbox.send(Fetch([Want(bytes(16), 0, 4096)] * 1000))
