"""What a round's work is made of: programs and parts, and the way of each device to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace

from broker_server.budget import Allowance, Budgets
from broker_server.experiment import Experiment
from broker_server.publishing.history import Frame, WholeFrames
from broker_server.publishing.holdings import Holdings, frames_of
from broker_server.publishing.publication import Publication
from broker_server.roster import KERNELS, Member, Roster
from broker_server.seeds import derive_seed
from broker_server.state import State
from broker_server.work import Work
from device_profiles.fleet.device_names import device_names
from edge_runtime.artifact import pack_program
from edge_runtime.contents import PROGRAM
from edge_runtime.layout import ROLES
from edge_runtime.protocol.blob import digest, kind_of_expert
from edge_runtime.protocol.messages import Artifact, Assign
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
        self._budgets = Budgets(experiment, publication)
        self._programs: dict[bytes, WholeFrames] = {}  # by content

    def prepare(self) -> None:
        """Export now the programs that the experiment's own devices will ask for."""
        experiment, kernels = self._experiment, KERNELS[self._experiment.train.trainer]
        names = device_names(experiment.data.devices)
        asked = {experiment.experts_asked(name, place) for place, name in enumerate(names)}
        for k in {experiment.model.experts} if experiment.assignment.policy == "full" else asked:
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
        codings: dict[str, str] = {}

        def plan(client: str) -> Assign:
            member = roster[client]
            assign = self._assign(state, number, attempt, experts[client], member, holdings)
            if client not in codings:  # planned again, it stays the same work
                codings[client] = self.uplink_coding(member, assign, roster.chunk_bytes)
            return replace(assign, codec=codings[client])

        return Work({client: plan(client) for client in experts}, plan, state.model)

    def uplink_coding(self, member: Member, assign: Assign, chunk_bytes: int) -> str:
        """What a device is to code its update with, beside what the work brings to it."""
        k, frames = len(assign.experts), frames_of(assign)
        last = assign.round == self._experiment.rounds
        return self._budgets.coding(member, k, frames, chunk_bytes, last)

    def allowances(
        self, clients: Iterable[str], roster: Roster, holdings: Holdings
    ) -> dict[str, Allowance]:
        """What the budgets allow those of `clients` that have one."""
        found = {
            client: self._budgets.allowance(roster[client], holdings[client], roster.chunk_bytes)
            for client in clients
        }
        return {client: allowance for client, allowance in found.items() if allowance is not None}

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
            counted=state.counted.get(member.client, 0),
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
            codec="",
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
