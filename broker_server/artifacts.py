"""What a round's work is made of: programs and parts, and the way of each device to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict

from broker_server.experiment import Experiment
from broker_server.history import Frame, WholeFrames
from broker_server.holdings import Holdings
from broker_server.publication import Publication
from broker_server.roster import KERNELS, Member, Roster
from broker_server.seeds import derive_seed
from broker_server.state import State
from broker_server.work import Work
from edge_runtime.artifact import pack_program
from edge_runtime.blob import digest, kind_of_expert
from edge_runtime.codec import parse_coding, resolve
from edge_runtime.contents import PROGRAM
from edge_runtime.layout import ROLES
from edge_runtime.messages import Artifact, Assign
from model_export.cache import ProgramCache
from model_export.models import ModelSpec
from model_export.program import Program, training_memory_bytes


class Artifacts:
    """Makes the artifacts of an experiment's model. Programs are exported once and kept."""

    def __init__(
        self,
        experiment: Experiment,
        spec: ModelSpec,
        cache: ProgramCache,
        publication: Publication,
    ) -> None:
        self._experiment = experiment
        self._spec = spec
        self._cache = cache
        self._publication = publication
        self._uplink = parse_coding(experiment.wire.codings.uplink)
        self._programs: dict[bytes, WholeFrames] = {}  # by content

    def prepare(self) -> None:
        """Export now the programs that the experiment's own devices will ask for."""
        model, kernels = self._experiment.model, KERNELS[self._experiment.train.trainer]
        asked = {model.experts_asked(i) for i in range(self._experiment.data.devices)}
        for k in {model.experts} if self._experiment.assignment.policy == "full" else asked:
            for role in ROLES:
                self._program(k, kernels, role)

    def memory_bytes(self, k: int, kernels: str) -> int:
        """What training with `k` experts needs on a device, the runtime and its data apart."""
        train = self._experiment.train
        return training_memory_bytes(
            *(self._program(k, kernels, role) for role in ROLES),
            moments=train.rates(1).moments,
            micro_batches=train.micro_batch not in (0, train.batch),
        )

    def make_work(
        self,
        state: State,
        number: int,
        attempt: int,
        experts: Mapping[str, list[int]],
        roster: Roster,
        holdings: Holdings,
    ) -> Work:
        """The work of an attempt at round `number`: for each client its `experts`, ascending."""

        def plan(client: str) -> Assign:
            return self._assign(state, number, attempt, experts[client], roster[client], holdings)

        return Work({client: plan(client) for client in experts}, plan, state.model)

    def uplink_coding(self, member: Member) -> str:
        """What a device is to code its update with."""
        return resolve(self._uplink, member.hello.codecs).spec

    def find(self, name: bytes) -> Frame | None:
        """The frame of this digest, if a device may be sent it."""
        for frames in self._programs.values():
            for frame in frames:
                if frame.ref.digest == name:
                    return frame
        return self._publication.find(name)

    def _assign(
        self,
        state: State,
        number: int,
        attempt: int,
        experts: list[int],
        member: Member,
        holdings: Holdings,
    ) -> Assign:
        train, held, codecs = self._experiment.train, holdings[member.client], member.hello.codecs
        training, evaluation = (
            self._program_artifact(
                self._program(len(experts), member.kernels, role).data, held, codecs
            )
            for role in ROLES
        )

        def part(kind: str) -> Artifact:
            return self._publication.artifact(kind, held, codecs)

        return Assign(
            session=state.session,
            round=number,
            attempt=attempt,
            experts=experts,
            training_program=training,
            evaluation_program=evaluation,
            backbone=part("backbone"),
            gate=part("gate"),
            expert_parts=[part(kind_of_expert(expert)) for expert in experts],
            local_gate=self._experiment.gate.mode == "local",
            epochs=train.epochs,
            batch=train.batch,
            **asdict(train.rates(number)),
            seed=derive_seed(self._experiment.seed, number, member.client),
            codec=self.uplink_coding(member),
        )

    def _program_artifact(
        self, data: bytes, held: Collection[bytes], codecs: Collection[str]
    ) -> Artifact:
        name = digest(data)
        if name in held:
            return Artifact(name, b"", [])

        def make(compressor: str) -> Frame:
            return Frame.of(PROGRAM, pack_program(data, compressor), {compressor} - {""})

        frames = self._programs.setdefault(name, WholeFrames(make))
        return Artifact(name, b"", [frames.best(codecs).ref])

    def _program(self, k: int, kernels: str, role: str) -> Program:
        train = self._experiment.train
        batch = train.micro_batch or train.batch
        return self._cache.get(self._spec, k, batch, role, kernels, balance=train.balance_loss)
