"""A device that must wait for its turns: what it computes when, and what it does meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_runtime.errors import EmulationError
from edge_runtime.protocol.messages import Failed, Hello, Received, Report, Rollcall, Stop
from edge_runtime.telemetry import Telemetry
from edge_runtime.turn import Phase
from tests.edge_runtime.stage import STEPS_AN_EPOCH, Script, Stage, failure, make_model

STEPS = 2 * STEPS_AN_EPOCH


class Gate:
    """Turns that come when the test opens them. `log`: what was asked for, and where the device
    was: programs loaded, steps taken."""

    def __init__(self) -> None:
        self.waited_s = 0.0
        self.open = True
        self.shut_at = 0  # the number of the request that has to wait
        self.asked = 0
        self.begun: Phase | None = None
        self.log: list[tuple[str, int, int]] = []
        self.stage: Stage | None = None

    def begin(self, phase: Phase, idle: Callable[[], bool]) -> bool:
        self.asked += 1
        self.note(phase)
        if self.asked == self.shut_at:
            self.open = False
        self.begun = None
        while not self.open:
            self.waited_s += 2.0
            if idle():
                return False
        self.begun = phase
        return True

    def over(self) -> None:
        if self.begun:
            self.note("over")
        self.begun = None

    def close(self) -> None:
        raise AssertionError("whoever made it closes it")

    def note(self, what: str) -> None:
        assert self.stage is not None
        self.log.append((what, self.stage.trainer.loads, self.stage.trainer.steps))


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def stage(gate: Gate) -> Stage:
    gate.stage = Stage(turns=gate)
    return gate.stage


def test_each_phase_begins_with_a_turn_and_all_is_over_before_the_report(
    stage: Stage, gate: Gate
) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        assert not gate.log  # who only waits for messages needs no turn
        stage.say(stage.make_assign(model))
        yield from stage.hear(Report)
        first = [("work", 0, 0), ("train", 1, 0), ("work", 1, STEPS), ("over", 1, STEPS)]
        assert gate.log == first
        stage.say(Received("s", 1, 1))
        stage.say(stage.make_assign(model, number=2))
        yield from stage.hear(Report)
        later = [("work", 1, STEPS), ("train", 1, STEPS), ("work", 1, 2 * STEPS)]
        assert gate.log[4:] == [*later, ("over", 1, 2 * STEPS)]
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_the_turn_is_asked_for_when_all_is_there(stage: Stage, gate: Gate) -> None:
    def script() -> Script:
        yield from stage.join()
        stage.serving = False
        stage.say(stage.make_assign(make_model(0, stage.layout)))
        yield from stage.rest(5.0)
        assert not gate.log
        stage.serving = True
        yield from stage.hear(Report)
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


@pytest.mark.parametrize("wait", [1, 2, 3])
def test_while_it_waits_it_answers_the_server(wait: int, stage: Stage, gate: Gate) -> None:
    gate.shut_at = wait

    def script() -> Script:
        yield from stage.join()
        assign = stage.make_assign(make_model(0, stage.layout))
        stage.say(assign)
        while gate.open:
            yield
        steps = stage.trainer.steps
        stage.say(Rollcall("s"))
        yield from stage.hear(Hello)
        stage.welcome()
        stage.say(assign)  # which it does already
        yield from stage.rest(1.0)
        assert stage.trainer.steps == steps == (STEPS if wait == 3 else 0)
        gate.open = True
        report = yield from stage.hear(Report)
        assert gate.asked == 3 and stage.trainer.steps == STEPS
        assert report.telemetry["turn_wait_s"] == gate.waited_s > 0
        assert report.telemetry["wall_s"] == 0.0  # of the test's real time nothing is left
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())
    assert not stage.mailbox.drops


@pytest.mark.parametrize("wait", [1, 2, 3])
def test_newer_work_ends_the_wait(wait: int, stage: Stage, gate: Gate) -> None:
    gate.shut_at = wait
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model, local_gate=True))
        while gate.open:
            yield
        stage.say(stage.make_assign(model, number=2))
        while gate.asked == wait:
            gate.open = True
            yield
        report = yield from stage.hear(Report)
        assert report.round == 2 and report.telemetry["turn_wait_s"] == 0.0
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())
    assert gate.asked == wait + 3 and gate.waited_s > 0
    assert [what for what, _, _ in gate.log].count("over") == 1


def test_a_stop_ends_the_wait(stage: Stage, gate: Gate) -> None:
    gate.shut_at = 2

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(make_model(0, stage.layout)))
        while gate.open:
            yield
        stage.say(Stop("s", "enough"))
        yield

    assert stage.play(script()) == "enough"
    assert gate.begun is None and stage.trainer.steps == 0


def test_work_that_fails_is_over(stage: Stage, gate: Gate) -> None:
    stage.programs = [b"no program", b"neither"]
    failure(stage, stage.make_assign(make_model(0, stage.layout)))
    phases = [what for what, _, _ in gate.log]
    assert phases == ["work", "over", "work", "train", "work", "over"]


def test_work_without_a_turn_fails(
    stage: Stage, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(phase: Phase, idle: Callable[[], bool]) -> bool:
        raise EmulationError("no turn to compute")

    monkeypatch.setattr(gate, "begin", refuse)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(make_model(0, stage.layout)))
        failed = yield from stage.hear(Failed)
        assert failed.reason == "no turn to compute"
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_a_report_tells_seconds_of_life() -> None:
    stage = Stage(telemetry=Telemetry(time_scale=10.0))
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.serving = False
        stage.say(stage.make_assign(model))
        yield from stage.rest(3.0)
        stage.serving = True
        report = yield from stage.hear(Report)
        assert 30.0 <= report.telemetry["fetch_s"] < 200.0
        assert report.telemetry["turn_wait_s"] == report.telemetry["previous_upload_s"] == 0.0
        assert report.telemetry["train_s"] > 0
        assert 0 < report.telemetry["train_cpu_s"] <= report.telemetry["cpu_s"]
        yield from stage.rest(2.0)
        stage.say(Received("s", 1, 1))
        stage.say(stage.make_assign(model, number=2))
        report = yield from stage.hear(Report)
        assert 20.0 <= report.telemetry["previous_upload_s"] < 100.0
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_the_board_is_told_with_the_hello() -> None:
    stage = Stage(board="pi-4b")

    def script() -> Script:
        hello = yield from stage.hear(Hello)
        assert hello.board == "pi-4b"
        stage.welcome()
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())
