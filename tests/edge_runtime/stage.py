"""A device under test against a scripted server: no threads, no real time, a trainer in numpy."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import numpy as np

from edge_runtime import local_training
from edge_runtime.agent import Agent
from edge_runtime.blob import BlobShelf, kind_of_expert, make_ref
from edge_runtime.codec import RawCodec
from edge_runtime.layout import ProgramLayout
from edge_runtime.ledger import Ledger
from edge_runtime.mailbox import DeviceMailbox, ServerMailbox, up_topic
from edge_runtime.memory_link import MemoryLink
from edge_runtime.messages import (
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
from edge_runtime.parts import GATE, ModelParts, merge, split
from edge_runtime.shard import Shard
from edge_runtime.trainer import Rates
from edge_runtime.transfer import serve
from edge_runtime.work import rates_of
from tests.edge_runtime.driven import DrivenLink, World
from tests.edge_runtime.reference_trainer import ReferenceTrainer, make_toy_layout

FEDERATION, NAME = "fed", "dev"
CODEC = RawCodec()
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


class Stage:
    """A device under test and the server that plays against it."""

    def __init__(
        self,
        shelf_bytes: int = 1 << 24,
        memory_limit_bytes: int | None = None,
        trainer: ReferenceTrainer | None = None,
        **sizes: Any,
    ) -> None:
        self.world = World()
        self.server_link = MemoryLink(self.world.broker, "server")
        self.server = ServerMailbox(self.server_link, FEDERATION, Ledger())
        will = (up_topic(FEDERATION, NAME), pack(Gone("connection lost")))
        self.link = DrivenLink(self.world, NAME, will)
        self.mailbox = DeviceMailbox(self.link, FEDERATION, NAME, Ledger())
        self.shard = make_shard()
        self.trainer = trainer or ReferenceTrainer()
        self.shelf = BlobShelf(shelf_bytes)
        self.agent = Agent(
            self.mailbox,
            self.shard,
            self.trainer,
            CODEC,
            self.shelf,
            memory_limit_bytes=memory_limit_bytes,
            clock=self.world.clock,
        )
        self.layout = make_toy_layout("train", **sizes)
        self.programs = [
            dataclasses.replace(self.layout, role=role).to_json().encode()
            for role in ("train", "evaluate")
        ]
        self.blobs: dict[bytes, bytes] = {}
        self.asked: Counter[tuple[bytes, int]] = Counter()
        self.heard: list[Message] = []
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
            if isinstance(message, Fetch):
                for want in message.wants:
                    for index in range(want.first, want.first + want.count):
                        self.asked[want.digest, index] += 1
                if self.serving:
                    for part in serve(message, self.blobs.get):
                        self.say(part)

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
        self.say(Welcome(session))

    def collect(self, report: Report) -> Generator[None, None, dict[str, dict[str, Any]]]:
        """Fetch and decode the update that a report names."""
        data: dict[bytes, dict[int, bytes]] = {ref.digest: {} for ref in report.update}
        self.say(Fetch([Want(ref.digest, 0, ref.chunks) for ref in report.update]))
        while any(len(data[ref.digest]) < ref.chunks for ref in report.update):
            part = yield from self.hear(Chunk)
            data[part.digest][part.index] = part.data
        whole = {d: b"".join(parts[i] for i in sorted(parts)) for d, parts in data.items()}
        for ref in report.update:
            assert make_ref(ref.kind, whole[ref.digest]) == ref
        return {ref.kind: dict(CODEC.decode(whole[ref.digest])) for ref in report.update}

    def count(self, kind: type[Message]) -> int:
        self.pump()
        return sum(isinstance(message, kind) for message in self.heard)

    # --- what a script hands out ---------------------------------------------------------------

    def offer(self, kind: str, data: bytes) -> BlobRef:
        ref = make_ref(kind, data)
        self.blobs[ref.digest] = data
        return ref

    def make_assign(
        self, model: ModelParts, experts: Sequence[int] = (1, 3), number: int = 1, **fields: Any
    ) -> Assign:
        assign = Assign(
            session="s",
            round=number,
            attempt=1,
            experts=list(experts),
            training_program=self.offer("program", self.programs[0]),
            evaluation_program=self.offer("program", self.programs[1]),
            backbone=self.offer("backbone", CODEC.encode(dict(model.backbone))),
            gate=self.offer("gate", CODEC.encode({GATE: model.gate[list(experts)]})),
            expert_blobs=[
                self.offer(kind_of_expert(e), CODEC.encode(dict(model.experts[e]))) for e in experts
            ],
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
        training_program=stage.offer("program", toy[0]),
        evaluation_program=stage.offer("program", toy[1]),
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
