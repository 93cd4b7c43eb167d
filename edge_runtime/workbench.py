"""Where a device does a round's work, once all blobs are there: load, train, test, code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edge_runtime import local_training
from edge_runtime.contents import Contents
from edge_runtime.errors import ProgramError, WireError
from edge_runtime.local_gate import LocalGate
from edge_runtime.local_training import Evaluation, LocalResult
from edge_runtime.parts import ModelParts, Tensors, merge, split
from edge_runtime.protocol.messages import Artifact, Assign
from edge_runtime.residual import Residuals
from edge_runtime.shard import Shard
from edge_runtime.telemetry import usable_memory_bytes
from edge_runtime.tensor_blob import unpack_tensors
from edge_runtime.trainer import Trainer, in_mib
from edge_runtime.update import Update, code_update
from edge_runtime.work import TooLarge, check_memory, rates_of, starting_parts


@dataclass(frozen=True)
class Trained:
    """What training came to. `train_s` is the time of training alone, `train_cpu_s` the CPU seconds
    of training and testing, over all threads."""

    result: LocalResult
    tested: Evaluation
    train_s: float
    train_cpu_s: float


class Workbench:
    """A device's trainer and data, and the programs that are loaded."""

    def __init__(
        self,
        trainer: Trainer,
        shard: Shard,
        contents: Contents,
        local_gate: LocalGate,
        residuals: Residuals,
        memory_limit_bytes: int | None,
        clock: Callable[[], float],
    ) -> None:
        """`memory_limit_bytes`: what training may use; None: what is free when it begins."""
        self._trainer = trainer
        self._shard = shard
        self._contents = contents
        self._local_gate = local_gate
        self._residuals = residuals
        self._memory_limit_bytes = memory_limit_bytes
        self._clock = clock
        self._programs: tuple[bytes, bytes] | None = None  # digests of the loaded pair
        self._fits: tuple[object, ...] | None = None  # what needs no other check of the memory
        self._needed_bytes = 0  # by training with the loaded pair

    def prepare(self, work: Assign) -> ModelParts:
        """The weights to start from; the pair of programs is loaded if it is another.

        The device must hold all that the work builds on. Raises `TooLarge` if training needs more
        memory than there is, `ProgramError` or `WireError` if anything does not fit.
        """
        pair = (work.training_program.digest, work.evaluation_program.digest)
        # The optimizer's state and the gradients depend on the rates and the batch too.
        demand = (*pair, rates_of(work).moments, work.batch)
        if demand != self._fits:
            self._make_room(work, pair)
            self._fits = demand
        with self._short_of_memory():
            return self._starting_parts(work)

    def _starting_parts(self, work: Assign) -> ModelParts:
        layout = self._trainer.layout
        if layout.shape != self._shard.shape or layout.classes < self._shard.labels:
            raise ProgramError(
                f"the program takes samples {list(layout.shape)} of {layout.classes} classes, the "
                f"shard has {list(self._shard.shape)} with labels below {self._shard.labels}"
            )
        own_rows = self._local_gate.rows(work.round) if work.local_gate else {}
        return starting_parts(work, layout, self._tensors, own_rows)

    def train(
        self, work: Assign, before: ModelParts, interrupted: Callable[[], bool]
    ) -> Trained | None:
        """Train from `before`, and test; None when `interrupted()` turned true on the way.

        `TooLarge` if the memory does not suffice after all.
        """
        with self._short_of_memory():
            self._trainer.assign(work.experts, merge(before))
            return self._train(work, interrupted)

    def _train(self, work: Assign, interrupted: Callable[[], bool]) -> Trained | None:
        shard, began_s, began_cpu_s = self._shard, self._clock(), time.process_time()
        result = local_training.fit(
            self._trainer,
            shard.train,
            shard.y_train,
            work.epochs,
            work.batch,
            rates_of(work),
            work.seed,
            interrupted,
        )
        if result is None:
            return None
        train_s = self._clock() - began_s
        tested = local_training.evaluate(self._trainer, shard.test, shard.y_test, interrupted)
        if tested is None:
            return None
        return Trained(result, tested, train_s, time.process_time() - began_cpu_s)

    def code(self, work: Assign, before: ModelParts) -> Update:
        """The update that training from `before` came to; a local gate's new rows are kept."""
        with self._short_of_memory():
            after = split(self._trainer.weights())
            if work.local_gate:
                self._local_gate.keep(work.round, {e: after.gate[e] for e in work.experts})
            return code_update(work, before, after, self._residuals)

    def _make_room(self, work: Assign, pair: tuple[bytes, bytes]) -> None:
        """Load `pair` if it is not; `TooLarge` if training needs more memory than there is."""
        training = self._blob(work.training_program)
        evaluation = self._blob(work.evaluation_program)
        need = self._trainer.memory_need(training, evaluation, rates_of(work), work.batch)
        # What is loaded makes room for what comes.
        held_bytes = self._needed_bytes if self._programs else 0
        check_memory(work, need, usable_memory_bytes(self._memory_limit_bytes, held_bytes))
        self._needed_bytes = need.total_bytes
        if pair != self._programs:
            self._programs = self._fits = None  # whatever a failed load leaves is not to be used
            with self._short_of_memory():
                self._trainer.load(training, evaluation)
            self._programs = pair

    @contextmanager
    def _short_of_memory(self) -> Iterator[None]:
        """An allocation that fails says what the work needs."""
        try:
            yield
        except MemoryError:
            raise TooLarge(
                f"the device ran out of memory; the work needs {in_mib(self._needed_bytes)}, which "
                "was free when it began",
                self._needed_bytes,
            ) from None

    def _blob(self, part: Artifact) -> bytes:
        data = self._contents.get(part.digest)
        if data is None:
            raise WireError("missing-content", f"{part.digest.hex()[:8]} is not here any more")
        return data

    def _tensors(self, part: Artifact) -> Tensors:
        return unpack_tensors(self._blob(part))
