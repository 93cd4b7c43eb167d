"""A device at work in a hail of bad messages: its updates are the same, to the byte."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from edge_runtime.errors import WireError
from edge_runtime.program_cache import ProgramCache
from edge_runtime.protocol.blob import chunk
from edge_runtime.protocol.messages import (
    MIN_CHUNK_BYTES,
    Assign,
    Fetch,
    Message,
    Received,
    Report,
    Rollcall,
    Stop,
    Want,
    pack,
    unpack,
)
from edge_runtime.protocol.topics import all_topic, blob_topic, down_topic
from edge_runtime.transport.memory_link import MemoryLink
from tests.edge_runtime.examples import EXAMPLES
from tests.edge_runtime.mutations import mutant
from tests.edge_runtime.stage import FEDERATION, NAME, Script, Stage, make_model

BATCH = 600
MESSAGES = 50_000
ROUNDS = {1: [1, 3], 2: [0, 3], 3: [1, 2]}


class Shouter:
    """Publishes to a device what its server never would, every other time that it waits."""

    def __init__(self, stage: Stage, most: int) -> None:
        self.sent = 0
        self.shouting = False
        self._stage, self._most = stage, most
        self._rng = random.Random("shouter")
        self._link = MemoryLink(stage.world.broker, "shouter")
        self._pool = [pack(message) for message in EXAMPLES.values()]
        self._turn = 0
        stage.world.actors.append(self.shout)

    def spoil(self, assign: Assign) -> None:
        """Put other bytes in the place of a chunk that the broker keeps, and learn the work."""
        self._pool += [pack(assign)] * 4
        if self._most:
            (ref,) = assign.gate.frames
            part = chunk(ref.digest, self._stage.frames[ref.digest], 0, MIN_CHUNK_BYTES)
            topic = blob_topic(FEDERATION, ref.digest, 0)
            self._link.publish(topic, bytes(len(part.data)), retain=True)

    def shout(self) -> None:
        self._turn += 1
        if not self.shouting or self._turn % 2 or self.sent >= self._most:
            return
        for _ in range(BATCH):
            topic = self._rng.choice((down_topic(FEDERATION, NAME), all_topic(FEDERATION)))
            payload = mutant(self._pool, self._rng)
            if self._rng.random() < 0.1:
                payload = pack(self._out_of_place())
            if harmless(payload):
                self._link.publish(topic, payload)
                self.sent += 1
        for name, data in self._stage.frames.items():
            last = (len(data) - 1) // MIN_CHUNK_BYTES
            for index in (0, last, last + 1, self._rng.randrange(last + 1)):
                payload = self._rng.choice((b"", b"short", bytes(MIN_CHUNK_BYTES + 1)))
                self._link.publish(blob_topic(FEDERATION, name, index), payload)

    def _out_of_place(self) -> Message:
        """A good message, of another run, for another round, or of a device's."""
        return self._rng.choice([*EXAMPLES.values(), Received("s", 77, 1), Received("s", 1, 9)])


def harmless(payload: bytes) -> bool:
    """Whether it is no word of this device's server, or of one that starts anew."""
    try:
        message = unpack(payload)
    except WireError:
        return True
    ours = getattr(message, "session", "") == "s" and not isinstance(message, Received)
    return not ours and not isinstance(message, (Rollcall, Fetch))


class Played(NamedTuple):
    updates: list[bytes]
    reports: list[Report]
    drops: Counter[tuple[str, str]]
    sent: int


def play(folder: Path, most: int) -> Played:
    stage = Stage(chunk_bytes=MIN_CHUNK_BYTES, width=1_000, programs=ProgramCache(folder))
    shouter = Shouter(stage, most)
    updates: list[bytes] = []
    reports: list[Report] = []

    def script() -> Script:
        yield from stage.join()
        yield from stage.rest(1)
        shouter.shouting = True
        for number, experts in ROUNDS.items():
            model = make_model(number, stage.layout, scale=0.02)
            # What the codec loses is kept for the next round: so each round builds on the last.
            assign = stage.make_assign(model, experts, number=number, codec="topk(0.2)")
            shouter.spoil(assign)
            stage.say(assign)
            report = yield from stage.hear(Report)
            updates.append((yield from stage.fetch(report.update)))
            reports.append(report)
            stage.say(Fetch([Want(report.update.digest, 10_000, 4096)]))
            stage.say(Received("s", number, 1))
            yield from stage.rest(8)
        shouter.shouting = False
        yield from stage.rest(1)
        stage.say(Stop("s", "done"))
        yield

    assert stage.play(script()) == "done"
    return Played(updates, reports, stage.mailbox.drops, shouter.sent)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Played, Played]:
    """The same rounds, quiet and disturbed."""
    folders = [tmp_path_factory.mktemp("programs") for _ in range(2)]
    return play(folders[0], 0), play(folders[1], MESSAGES)


def test_the_updates_are_the_same_to_the_byte(played: tuple[Played, Played]) -> None:
    quiet, loud = played
    assert quiet.updates == loud.updates
    for one, other in zip(quiet.reports, loud.reports, strict=True):
        both = [dataclasses.replace(r, telemetry={}, account=[]) for r in (one, other)]
        assert both[0] == both[1]


def test_what_is_bad_is_counted(played: tuple[Played, Played]) -> None:
    quiet, loud = played
    assert set(quiet.drops) == {(NAME, "bad-want")}
    assert loud.sent >= MESSAGES / 2
    assert sum(loud.drops.values()) >= loud.sent + 3 * len(ROUNDS)
    reasons = {reason for _, reason in loud.drops}
    assert {"malformed", "version", "unknown", "direction", "stale", "bad-size", "bad-chunk",
            "bad-digest", "bad-want", "withdrawn"} <= reasons  # fmt: skip
    assert {client for client, _ in loud.drops} == {NAME}
