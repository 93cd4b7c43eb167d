"""Memory that a round's work needs, in a whole device's life."""

from __future__ import annotations

import dataclasses

import pytest

from edge_runtime import telemetry
from edge_runtime.layout import ProgramLayout
from edge_runtime.protocol.messages import Failed, Report, Stop
from edge_runtime.trainer import Batch, MemoryNeed, Rates, StepResult, Weights
from tests.edge_runtime.reference_trainer import ReferenceTrainer, make_toy_layout
from tests.edge_runtime.stage import BATCH, Script, Stage, failure, make_model


@pytest.fixture
def stage() -> Stage:
    return Stage()


def needed(layout: ProgramLayout) -> int:
    """What the reference trainer needs to train with SGD."""
    return 3 * layout.weights_bytes + sum(
        len(dataclasses.replace(layout, role=role).to_json()) for role in ("train", "evaluate")
    )


def test_programs_that_do_not_fit_the_memory_fail_and_say_what_they_need() -> None:
    wide = Stage(width=5000)
    limit = needed(wide.layout) - 1
    assert needed(make_toy_layout("train")) <= limit
    stage = Stage(width=5000, memory_limit_bytes=limit)
    failed = failure(stage, stage.make_assign(make_model(0, stage.layout)))
    assert failed.needed_bytes == limit + 1
    figure = f"{(limit + 1) / 2**20:.1f}"
    assert failed.reason.startswith(f"training 2 experts needs {figure} MiB (programs 0.0, arena")
    assert "the device may use" in failed.reason and "train.micro_batch" in failed.reason
    assert stage.trainer.loads == 1  # the good work alone


def test_a_limit_that_is_just_enough() -> None:
    stage = Stage()
    stage = Stage(memory_limit_bytes=needed(stage.layout))
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model))
        yield from stage.hear(Report)
        # AdamW's state is larger, with the programs that are loaded already.
        stage.say(stage.make_assign(model, number=2, optimizer="adamw"))
        failed = yield from stage.hear(Failed)
        assert failed.needed_bytes == needed(stage.layout) + stage.layout.weights_bytes
        stage.say(stage.make_assign(model, number=3))
        yield from stage.hear(Report)
        assert stage.trainer.loads == 1
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


class BatchKeeper(ReferenceTrainer):
    """Holds a byte for each sample of a step."""

    def memory_need(
        self, training: bytes, evaluation: bytes, rates: Rates, batch: int
    ) -> MemoryNeed:
        need = super().memory_need(training, evaluation, rates, batch)
        return dataclasses.replace(need, arena_bytes=batch)


def test_a_larger_batch_is_checked_too() -> None:
    layout = make_toy_layout("train")
    stage = Stage(memory_limit_bytes=needed(layout) + BATCH, trainer=BatchKeeper())
    model = make_model(0, layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model))
        yield from stage.hear(Report)
        stage.say(stage.make_assign(model, number=2, batch=2 * BATCH))
        failed = yield from stage.hear(Failed)
        assert failed.needed_bytes == needed(layout) + 2 * BATCH
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def free_memory(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """What is free, each time that it is measured: first for the hello."""
    left = list(sizes)
    monkeypatch.setattr(telemetry, "memory_available_bytes", lambda: left.pop(0))


def test_without_a_limit_what_is_free_now_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_memory(monkeypatch, 1 << 40, needed(stage.layout) - 1, 1 << 40)
    failed = failure(stage, stage.make_assign(make_model(0, stage.layout)))
    assert failed.needed_bytes == needed(stage.layout)


def test_a_limit_does_not_make_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(memory_limit_bytes=1 << 40)
    free_memory(monkeypatch, 1 << 40, needed(stage.layout) - 1, 1 << 40)
    failed = failure(stage, stage.make_assign(make_model(0, stage.layout)))
    assert failed.needed_bytes == needed(stage.layout)


@pytest.mark.parametrize("short", [0, 1])
def test_what_is_loaded_makes_room_for_what_comes(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage()
    model, wide_layout = make_model(0, stage.layout), make_toy_layout("train", width=50)
    held, wide = needed(stage.layout), needed(wide_layout)
    free_memory(monkeypatch, 1 << 40, held, wide - held - short)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model))
        yield from stage.hear(Report)
        stage.programs = [
            dataclasses.replace(wide_layout, role=role).to_json().encode()
            for role in ("train", "evaluate")
        ]
        stage.say(stage.make_assign(make_model(0, wide_layout), number=2))
        if short:
            failed = yield from stage.hear(Failed)
            assert failed.needed_bytes == wide
        else:
            yield from stage.hear(Report)
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


class OutOfMemory(ReferenceTrainer):
    """Finds no memory after all, the first time that it loads, is assigned or trains."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def _allocate(self, where: str) -> None:
        if self._where == where:
            self._where = ""
            raise MemoryError

    def load(self, training: bytes, evaluation: bytes) -> None:
        super().load(training, evaluation)
        self._allocate("load")

    def assign(self, experts: list[int], weights: Weights) -> None:
        self._allocate("assign")
        super().assign(experts, weights)

    def train_step(self, batch: Batch, rates: Rates) -> StepResult:
        self._allocate("train_step")
        return super().train_step(batch, rates)


@pytest.mark.parametrize(("where", "loads"), [("load", 2), ("assign", 1), ("train_step", 1)])
def test_an_allocation_that_fails_counts_as_too_little_memory(where: str, loads: int) -> None:
    stage = Stage(trainer=OutOfMemory(where))
    failed = failure(stage, stage.make_assign(make_model(0, stage.layout)))
    assert failed.needed_bytes == needed(stage.layout)
    assert failed.reason.startswith("the device ran out of memory; the work needs 0.0 MiB")
    assert stage.trainer.loads == loads  # what a failed load left is not used


def test_memory_that_fails_while_fetching_says_nothing_of_programs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model))
        yield from stage.hear(Report)

        def put(data: bytes) -> None:
            raise MemoryError

        monkeypatch.setattr(stage.shelf, "put", put)
        stage.say(stage.make_assign(make_model(1, stage.layout), number=2))
        failed = yield from stage.hear(Failed)
        assert failed == Failed("s", 2, 1, "the device ran out of memory", 0)
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())
