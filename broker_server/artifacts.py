"""What a round pushes: programs and blobs by digest, and the `Assign` that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from broker_server.experiment import Experiment
from broker_server.roster import KERNELS
from broker_server.seeds import derive_seed
from broker_server.state import State
from broker_server.work import Work
from edge_runtime.blob import kind_of_expert, make_ref
from edge_runtime.codec import Codec
from edge_runtime.layout import ROLES
from edge_runtime.messages import Assign, BlobRef
from model_export.cache import ProgramCache
from model_export.models import ModelSpec
from model_export.program import Program, training_memory_bytes
from model_export.split import encode_backbone, encode_expert, encode_gate_rows


class Artifacts:
    """Makes the artifacts of an experiment's model. Programs are exported once and kept."""

    def __init__(
        self, experiment: Experiment, spec: ModelSpec, cache: ProgramCache, codec: Codec
    ) -> None:
        self._experiment = experiment
        self._spec = spec
        self._cache = cache
        self._codec = codec

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
        kernels: Mapping[str, str],
    ) -> Work:
        """The work of an attempt at round `number`, by client.

        For each its `experts`, ascending, and its `kernels`.
        """
        blobs: dict[bytes, bytes] = {}

        def offer(kind: str, data: bytes) -> BlobRef:
            ref = make_ref(kind, data)
            blobs[ref.digest] = data
            return ref

        parts, train = state.model, self._experiment.train
        backbone = offer("backbone", encode_backbone(parts, self._codec))
        held = {
            e: offer(kind_of_expert(e), encode_expert(parts, e, self._codec))
            for e in sorted({e for chosen in experts.values() for e in chosen})
        }
        kinds = {client: (len(chosen), kernels[client]) for client, chosen in experts.items()}
        programs = {
            kind: [offer("program", self._program(*kind, role).data) for role in ROLES]
            for kind in set(kinds.values())
        }
        assigns = {
            client: Assign(
                session=state.session,
                round=number,
                attempt=attempt,
                experts=chosen,
                training_program=programs[kinds[client]][0],
                evaluation_program=programs[kinds[client]][1],
                backbone=backbone,
                gate=offer("gate", encode_gate_rows(parts, chosen, self._codec)),
                expert_blobs=[held[e] for e in chosen],
                local_gate=self._experiment.gate.mode == "local",
                epochs=train.epochs,
                batch=train.batch,
                **asdict(train.rates(number)),
                seed=derive_seed(self._experiment.seed, number, client),
            )
            for client, chosen in experts.items()
        }
        return Work(assigns, blobs, parts)

    def _program(self, k: int, kernels: str, role: str) -> Program:
        train = self._experiment.train
        batch = train.micro_batch or train.batch
        return self._cache.get(self._spec, k, batch, role, kernels, balance=train.balance_loss)
