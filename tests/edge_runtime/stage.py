"""A device under test against a scripted server: no threads, no real time, a trainer in numpy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_runtime import local_training
from edge_runtime.agent import Agent
from edge_runtime.artifact import pack_program
from edge_runtime.codec import decode, encode, parse_coding
from edge_runtime.contents import Contents
from edge_runtime.errors import WireError
from edge_runtime.layout import ProgramLayout
from edge_runtime.parts import GATE, ModelParts, Tensors, merge, split
from edge_runtime.program_cache import ProgramCache
from edge_runtime.protocol.blob import BlobShelf, digest, kind_of_expert, make_ref
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import DeviceMailbox, ServerMailbox
from edge_runtime.protocol.messages import (
    CHUNK_BYTES,
    Artifact,
    Assign,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Message,
    Report,
    Stop,
    Want,
    Welcome,
    pack,
)
from edge_runtime.protocol.topics import up_topic
from edge_runtime.protocol.transfer import serve
from edge_runtime.residual import Residuals
from edge_runtime.shard import Shard
from edge_runtime.telemetry import Telemetry
from edge_runtime.tensor_blob import pack_tensors
from edge_runtime.trainer import Rates
from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink
from edge_runtime.turn import Turn
from edge_runtime.work import rates_of
from tests.edge_runtime.driven import DrivenLink, World
from tests.edge_runtime.reference_trainer import ReferenceTrainer, make_toy_layout

FEDERATION, NAME = "fed", "dev"
RAW = parse_coding("raw")
SAMPLES, BATCH = 20, 8
STEPS_AN_EPOCH = 3
RATES = Rates(0.1, 0.9, 0.0)

M = TypeVar("M")
Script = Generator[None, None, None]


def make_shard(shape: tuple[int, ...] = (4,), seed: int = 0) -> Shard:
    rng = np.random.default_rng(seed)
    return Shard(
        x_train=rng.normal(size=(SAMPLES, *shape)).astype(np.float32),
        y_train=np.arange(SAMPLES) % 3,
        x_test=rng.normal(size=(5, *shape)).astype(np.float32),
        y_test=np.arange(5) % 3,
    )


def make_model(seed: int, layout: ProgramLayout, scale: float = 1.0) -> ModelParts:
    """A full model that fits the subset model of `layout`."""
    rng = np.random.default_rng(seed)
    weights = {w.name: rng.normal(0, scale, w.shape).astype(np.float32) for w in layout.weights}
    parts = split(weights)
    experts = [
        {n: rng.normal(0, scale, v.shape).astype(np.float32) for n, v in parts.experts[0].items()}
        for _ in range(layout.experts)
    ]
    return ModelParts(parts.backbone, parts.gate, tuple(experts))


def loaded_trainer(layout: ProgramLayout) -> ReferenceTrainer:
    trainer = ReferenceTrainer()
    program = layout.to_json().encode()
    trainer.load(program, program)
    return trainer


def expected_training(
    assign: Assign, model: ModelParts, shard: Shard, layout: ProgramLayout, gate: Any = None
) -> tuple[local_training.LocalResult, ModelParts, ModelParts]:
    """What the work must come to: the result, the parts before, and the parts after."""
    rows = np.zeros_like(model.gate)
    rows[assign.experts] = model.gate[assign.experts] if gate is None else gate[assign.experts]
    before = ModelParts(model.backbone, rows, tuple(model.experts[e] for e in assign.experts))
    trainer = loaded_trainer(layout)
    trainer.assign(assign.experts, merge(before))
    result = local_training.fit(
        trainer,
        shard.x_train,
        shard.y_train,
        assign.epochs,
        assign.batch,
        rates_of(assign),
        assign.seed,
    )
    assert result is not None
    return result, before, split(trainer.weights())


def coded(tensors: Mapping[str, NDArray[np.float32]], described: bool = False) -> bytes:
    """A frame that loses nothing."""
    return encode(tensors, RAW, np.random.default_rng(0), described=described)


class Ears(DeviceMailbox):
    """A device's mailbox that notes which chunks it listened to, and how often."""

    def __init__(self, link: DrivenLink) -> None:
        super().__init__(link, FEDERATION, NAME, Ledger())
        self.listened: Counter[tuple[bytes, int]] = Counter()
        self.unlistened: Counter[tuple[bytes, int]] = Counter()

    def listen(self, name: bytes, kind: str, indexes: Iterable[int]) -> None:
        indexes = list(indexes)
        self.listened.update((name, index) for index in indexes)
        super().listen(name, kind, indexes)

    def unlisten(self, name: bytes, indexes: Iterable[int]) -> None:
        indexes = list(indexes)
        self.unlistened.update((name, index) for index in indexes)
        super().unlisten(name, indexes)


class Stage:
    """A device under test and the server that plays against it.

    The server publishes each frame when it is made, retained; while it is not `serving` it
    publishes nothing and answers nobody.
    """

    def __init__(
        self,
        shelf_bytes: int = 1 << 24,
        memory_limit_bytes: int | None = None,
        trainer: ReferenceTrainer | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        retained: bool = True,
        programs: ProgramCache | None = None,
        residuals: Residuals | None = None,
        link_class: str = "",
        board: str = "",
        telemetry: Telemetry | None = None,
        turns: Turn | None = None,
        **sizes: Any,
    ) -> None:
        self.world = World()
        self.world.broker = MemoryBroker(retains=retained)
        self.chunk_bytes, self.retained = chunk_bytes, retained
        self.server_link = MemoryLink(self.world.broker, "server")
        self.server = ServerMailbox(self.server_link, FEDERATION, Ledger())
        will = (up_topic(FEDERATION, NAME), pack(Gone("connection lost")))
        self.link = DrivenLink(self.world, NAME, will)
        self.mailbox = Ears(self.link)
        self.shard = make_shard()
        self.trainer = trainer or ReferenceTrainer()
        self.shelf = BlobShelf(shelf_bytes)
        self.contents = Contents(self.shelf, programs)
        self.agent = Agent(
            self.mailbox,
            self.shard,
            self.trainer,
            self.contents,
            residuals=residuals,
            link_class=link_class,
            memory_limit_bytes=memory_limit_bytes,
            clock=self.world.clock,
            board=board,
            telemetry=telemetry,
            turns=turns,
        )
        self.layout = make_toy_layout("train", **sizes)
        self.programs = [
            dataclasses.replace(self.layout, role=role).to_json().encode()
            for role in ("train", "evaluate")
        ]
        self.frames: dict[bytes, bytes] = {}
        self.kinds: dict[bytes, str] = {}
        self.asked: Counter[tuple[bytes, int]] = Counter()
        self.heard: list[Message] = []  # and not waited for yet
        self.said: Counter[type] = Counter()  # messages by type, all that were ever heard
        self.serving = True

    def play(self, script: Script) -> str:
        """Run the agent against `script`; each step of it is taken when the agent waits."""

        def step() -> None:
            try:
                next(script)
            except StopIteration:
                raise AssertionError("the script is over and the device lives on") from None

        self.world.actors.append(step)
        return self.agent.live()

    # --- what a script says and hears ----------------------------------------------------------

    def say(self, message: Message) -> None:
        self.server.send(NAME, message)

    def pump(self) -> None:
        """Take what arrived; answer what is asked for."""
        while (taken := self.server.receive(0)) is not None:
            message = taken[1]
            self.heard.append(message)
            self.said[type(message)] += 1
            if isinstance(message, Fetch):
                for want in message.wants:
                    for index in range(want.first, want.first + want.count):
                        self.asked[want.digest, index] += 1
                if self.serving:
                    self.answer(message)

    def answer(self, fetch: Fetch) -> None:
        """Publish what is asked for, as far as it is known."""
        with contextlib.suppress(WireError):
            for part in serve(fetch, self.frames.get, self.chunk_bytes):
                self.publish(part)

    def publish(self, part: Chunk) -> None:
        """Publish a chunk of a frame."""
        self.server.offer(part.digest, self.kinds[part.digest], part.index, part.data, True)

    def hear(self, kind: type[M]) -> Generator[None, None, M]:
        """Let the device go on until it says something of this kind."""
        while True:
            self.pump()
            for place, message in enumerate(self.heard):
                if isinstance(message, kind):
                    del self.heard[: place + 1]
                    return message
            yield

    def rest(self, seconds: float) -> Script:
        """Let time pass."""
        end_s = self.world.now_s + seconds
        while self.world.now_s < end_s:
            self.pump()
            yield

    def join(self, session: str = "s") -> Script:
        yield from self.hear(Hello)
        self.welcome(session)

    def welcome(self, session: str = "s") -> None:
        self.say(Welcome(session, self.chunk_bytes, self.retained))

    def collect(self, report: Report) -> Generator[None, None, dict[str, Tensors]]:
        """Fetch and decode the update that a report names."""
        blob = yield from self.fetch(report.update)
        kinds = list(self.shapes(report.experts))
        if len(report.sections) < len(kinds):
            kinds.remove("gate")
        update: dict[str, Tensors] = {}
        for kind, size_bytes in zip(kinds, report.sections, strict=True):
            section, blob = blob[:size_bytes], blob[size_bytes:]
            update[kind] = decode(section, self.shapes(report.experts)[kind], 1 << 24)
        assert not blob
        return update

    def fetch(self, ref: BlobRef) -> Generator[None, None, bytes]:
        """All chunks of an update."""
        data: dict[int, bytes] = {}
        count = ref.chunks(self.chunk_bytes)
        self.say(Fetch([Want(ref.digest, 0, count)]))
        while len(data) < count:
            part = yield from self.hear(Chunk)
            assert part.digest == ref.digest
            data[part.index] = part.data
        blob = b"".join(data[index] for index in sorted(data))
        assert make_ref(blob) == ref
        return blob

    def shapes(self, experts: Sequence[int]) -> dict[str, dict[str, tuple[int, ...]]]:
        """Of an update's tensors, by kind."""
        parts = split({w.name: np.zeros(w.shape, np.float32) for w in self.layout.weights})
        gate = {GATE: parts.gate[: len(experts)]}
        tensors = {"backbone": parts.backbone, "gate": gate}
        for expert in experts:
            tensors[kind_of_expert(expert)] = parts.experts[0]
        return {
            kind: {name: value.shape for name, value in named.items()}
            for kind, named in tensors.items()
        }

    def count(self, kind: type[Message]) -> int:
        self.pump()
        return sum(isinstance(message, kind) for message in self.heard)

    # --- what a script hands out ---------------------------------------------------------------

    def frame(self, kind: str, data: bytes) -> BlobRef:
        """A frame of these bytes, published."""
        ref = make_ref(data)
        self.frames[ref.digest], self.kinds[ref.digest] = data, kind
        if self.serving:
            self.answer(Fetch([Want(ref.digest, 0, ref.chunks(self.chunk_bytes))]))
        return ref

    def program(self, data: bytes) -> Artifact:
        """A program and its frame."""
        return Artifact(digest(data), b"", [self.frame("program", pack_program(data))])

    def part(self, kind: str, tensors: Mapping[str, NDArray[np.float32]]) -> Artifact:
        """A part and its whole frame."""
        frame = self.frame(kind, coded(tensors, described=True))
        return Artifact(digest(pack_tensors(tensors)), b"", [frame])

    def make_assign(
        self, model: ModelParts, experts: Sequence[int] = (1, 3), number: int = 1, **fields: Any
    ) -> Assign:
        assign = Assign(
            session="s",
            round=number,
            attempt=1,
            counted=number - 1,
            experts=list(experts),
            training_program=self.program(self.programs[0]),
            evaluation_program=self.program(self.programs[1]),
            backbone=self.part("backbone", model.backbone),
            gate=self.part("gate", {GATE: model.gate}),
            expert_parts=[self.part(kind_of_expert(e), model.experts[e]) for e in experts],
            local_gate=False,
            epochs=2,
            batch=BATCH,
            optimizer=RATES.optimizer,
            learning_rate=RATES.learning_rate,
            momentum=RATES.momentum,
            weight_decay=RATES.weight_decay,
            beta1=RATES.beta1,
            beta2=RATES.beta2,
            epsilon=RATES.epsilon,
            clip_norm=RATES.clip_norm,
            seed=number,
            codec="raw",
        )
        return dataclasses.replace(assign, **fields)


def refused(stage: Stage, assign: Assign) -> str:
    """Why `assign` fails, which is not for lack of memory."""
    failed = failure(stage, assign)
    assert failed.needed_bytes == 0
    return failed.reason


def failure(stage: Stage, assign: Assign) -> Failed:
    """Hand out `assign`, then good work that must still be done; returns how `assign` failed."""
    good = stage.make_assign(make_model(9, make_toy_layout("train")), [0, 2], number=2)
    toy = [make_toy_layout(role).to_json().encode() for role in ("train", "evaluate")]
    good = dataclasses.replace(
        good,
        training_program=stage.program(toy[0]),
        evaluation_program=stage.program(toy[1]),
    )
    failures: list[Failed] = []

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        failed = yield from stage.hear(Failed)
        assert (failed.session, failed.round) == ("s", 1)
        failures.append(failed)
        stage.say(good)
        report = yield from stage.hear(Report)
        assert report.round == 2
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())
    return failures[0]
