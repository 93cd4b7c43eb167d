"""An exchange, its devices and the world around them, for the tests of a round's conversation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broker_server.exchange import Exchange
from broker_server.life import Life
from broker_server.publishing.broadcast import Broadcast
from broker_server.publishing.history import Frame
from broker_server.roster import Roster
from broker_server.spool import Spool
from broker_server.work import Answer, Work
from edge_runtime.parts import ModelParts
from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.ledger import EVERYONE, Ledger
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.messages import Artifact, Assign, Received
from tests.broker_server.sample_model import SPEC, changes, encode, make_assign, random_model
from tests.broker_server.scripted_device import FEDERATION, Device
from tests.edge_runtime.driven import DrivenLink, World

DEADLINE_S = 60.0
REJOIN_S = 5.0
MODEL = random_model(0)
BIG_MODEL = random_model(0, big=300)
CHUNK_BYTES = 128 * 1024  # an update of the big model travels in six chunks


class Server:
    """An `Exchange` and the world around it."""

    def __init__(self, folder: Path, model: ModelParts = MODEL, life: Life | None = None) -> None:
        self.world = World()
        self.model = model
        self.link = DrivenLink(self.world, "server")
        self.mailbox = ServerMailbox(self.link, FEDERATION, Ledger())
        self.mailbox.chunk_bytes = CHUNK_BYTES
        self.roster = Roster(SPEC, "s", chunk_bytes=CHUNK_BYTES)
        self.spool = Spool(folder / "spool")
        # The contents of all work are whole frames: whoever says that it holds one is sent none.
        contents = encode(changes(99, model, range(4))) | {"program": b"p" * 5000}
        self.contents = {kind: digest(kind.encode()) for kind in contents}
        self.frames = {kind: Frame.of(kind, data, ()) for kind, data in contents.items()}
        frames = {frame.ref.digest: frame for frame in self.frames.values()}
        self.broadcast = Broadcast(self.mailbox, frames.get, clock=self.world.clock)
        clock = self.world.clock
        self.exchange = Exchange(
            self.mailbox, self.roster, self.broadcast, "s", self.spool, 4, clock=clock, life=life
        )

    def device(self, name: str, seed: int = 0, delay_s: float = 0.0) -> Device:
        return Device(self.world, name, self.model, seed, delay_s)

    def gather(self, expected: int) -> None:
        self.exchange.gather(expected, 10.0)
        assert len(self.roster.present) == expected

    def run(
        self,
        devices: Sequence[Device],
        number: int = 1,
        attempt: int = 1,
        rejoin_s: float = REJOIN_S,
    ) -> dict[str, Answer]:
        experts = {device.name: [i % 3, 3] for i, device in enumerate(devices)}

        def plan(client: str) -> Assign:
            held = self.exchange.holdings[client]
            artifacts = {
                kind: Artifact(name, b"", [] if name in held else [self.frames[kind].ref])
                for kind, name in self.contents.items()
            }
            chosen = experts[client]
            return make_assign(chosen, number=number, attempt=attempt, artifacts=artifacts)

        work = Work({client: plan(client) for client in experts}, plan, self.model)
        return self.exchange.run(work, DEADLINE_S, rejoin_s)

    def assert_ok(self, answers: dict[str, Answer], *devices: Device) -> None:
        """These devices' answers are what they sent, to the byte."""
        for device in devices:
            assert answers[device.name] == Answer("ok", report=device.report), device.name
            assert self.spool.get(device.name) == device.data
            device.step()  # hear the last word
            report = device.report
            assert report is not None
            assert device.got(Received) == [Received("s", report.round, report.attempt)]

    def offered(self, *kinds: str) -> int:
        """How many chunks of frames of these kinds the server published, again ones too."""
        rows = self.mailbox.ledger.rows()
        return sum(row.messages for row in rows if row.client == EVERYONE and row.kind in kinds)

    @property
    def drops(self) -> dict[tuple[str, str], int]:
        return dict(self.mailbox.drops)


def three(server: Server) -> list[Device]:
    devices = [server.device(name, seed) for seed, name in enumerate("abc")]
    server.gather(3)
    return devices


def forget(devices: Sequence[Device]) -> None:
    """Let them hear the last word of a round, and forget it."""
    for device in devices:
        device.step()
        device.received.clear()
