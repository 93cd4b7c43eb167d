"""One device's life against a scripted server. No threads, no real time, a trainer in numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import FlexmoeError
from edge_runtime.parts import GATE, Tensors, difference
from edge_runtime.protocol.messages import (
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Received,
    Reject,
    Report,
    Rollcall,
    Stop,
    Want,
)
from edge_runtime.work import contents_of
from tests.edge_runtime.stage import (
    NAME,
    SAMPLES,
    STEPS_AN_EPOCH,
    Script,
    Stage,
    expected_training,
    make_model,
    refused,
)


@pytest.fixture
def stage() -> Stage:
    return Stage()


# --- joining and leaving -----------------------------------------------------------------------


def test_a_rejected_device_ends_with_the_reason(stage: Stage) -> None:
    def script() -> Script:
        yield from stage.hear(Hello)
        stage.say(Reject("s", "its samples have shape [4]"))
        yield

    with pytest.raises(FlexmoeError, match=r"rejected this device: its samples have shape \[4\]"):
        stage.play(script())


def test_only_its_own_session_can_stop_it(stage: Stage) -> None:
    def script() -> Script:
        yield from stage.hear(Hello)
        stage.say(Stop("s", "not welcomed yet"))
        stage.welcome()
        stage.say(Stop("of yesterday", "stale"))
        yield from stage.rest(2)
        assert stage.mailbox.drops == {(NAME, "stale"): 2}
        stage.say(Stop("s", "now"))
        yield

    assert stage.play(script()) == "now"


def test_leaving_says_why(stage: Stage) -> None:
    stage.agent.leave("interrupted")
    stage.pump()
    assert stage.heard == [Gone("interrupted")]


# --- a round -----------------------------------------------------------------------------------


def test_work_is_done_and_the_update_is_the_change_of_the_weights(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        assign = stage.make_assign(model)
        stage.say(assign)
        report = yield from stage.hear(Report)
        result, before, after = expected_training(assign, model, stage.shard, stage.layout)
        assert (report.session, report.round, report.experts) == ("s", 1, [1, 3])
        assert (report.usage, report.hits) == (result.usage, result.hits)
        assert report.loss == result.loss and report.train_loss == result.train_loss
        assert sum(report.usage) == SAMPLES and report.test_samples == 5
        assert report.telemetry["train_steps"] == 2 * STEPS_AN_EPOCH == result.steps
        assert report.telemetry["rss_mib"] > 0

        update = yield from stage.collect(report)
        assert list(update) == ["backbone", "gate", "expert:1", "expert:3"]
        want = {
            "backbone": difference(after.backbone, before.backbone),
            "gate": {GATE: (after.gate - before.gate)[[1, 3]]},
            "expert:1": difference(after.experts[0], before.experts[0]),
            "expert:3": difference(after.experts[1], before.experts[1]),
        }
        for kind, tensors in want.items():
            assert update[kind].keys() == tensors.keys()
            for name, value in tensors.items():
                assert update[kind][name].tobytes() == value.tobytes(), (kind, name)
                assert np.abs(value).max() > 0
        stage.say(Received("s", 1, 1))
        stage.say(Stop("s", "done"))
        yield

    assert stage.play(script()) == "done"
    assert not stage.mailbox.drops


@pytest.mark.parametrize(
    "fields",
    [
        {"batch": 16},
        {"batch": 5},
        {"optimizer": "adamw", "learning_rate": 0.01, "beta1": 0.5, "weight_decay": 0.1},
        {"clip_norm": 0.01},
        {"momentum": 0.0},
    ],
    ids=str,
)
def test_work_says_how_to_train(stage: Stage, fields: dict[str, Any]) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        plain = stage.make_assign(model)
        assign = dataclasses.replace(plain, **fields)
        stage.say(assign)
        report = yield from stage.hear(Report)
        result, before, after = expected_training(assign, model, stage.shard, stage.layout)
        assert report.loss == result.loss
        assert report.telemetry["train_steps"] == 2 * -(-SAMPLES // assign.batch)
        update = yield from stage.collect(report)
        change = difference(after.backbone, before.backbone)
        other = expected_training(plain, model, stage.shard, stage.layout)[2]
        for name, value in change.items():
            assert update["backbone"][name].tobytes() == value.tobytes()
            assert (after.backbone[name] != other.backbone[name]).any()
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_what_it_holds_is_not_fetched_again(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model, [0, 1]))
        yield from stage.hear(Report)
        stage.say(Received("s", 1, 1))
        before = stage.mailbox.listened.copy()
        second = stage.make_assign(model, [1, 2], number=2)
        stage.say(second)
        yield from stage.hear(Report)
        new = {name for name, _ in stage.mailbox.listened - before}
        assert new == {second.expert_parts[1].frames[0].digest}
        assert set(stage.mailbox.listened.values()) == {1}
        assert stage.mailbox.listened == stage.mailbox.unlistened and not stage.asked
        assert stage.trainer.loads == 1
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_what_was_fetched_is_measured(stage: Stage) -> None:
    """The bytes of the frames, each once, and the time until the last content is built."""
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.serving = False
        first = stage.make_assign(model, [0, 1])
        stage.say(first)
        yield from stage.rest(3.0)
        stage.serving = True
        report = yield from stage.hear(Report)
        named = {
            ref.digest: ref.size_bytes for _, part in contents_of(first) for ref in part.frames
        }
        assert report.telemetry["fetch_bytes"] == sum(named.values())
        assert 3.0 <= report.telemetry["fetch_s"] < 20.0
        stage.say(Received("s", 1, 1))
        second = stage.make_assign(model, [1, 2], number=2)
        stage.say(second)
        report = yield from stage.hear(Report)
        new = second.expert_parts[1].frames[0].size_bytes
        assert report.telemetry["fetch_bytes"] == new
        stage.say(Received("s", 2, 1))
        stage.say(dataclasses.replace(second, round=3))
        report = yield from stage.hear(Report)
        assert report.telemetry["fetch_bytes"] == report.telemetry["fetch_s"] == 0.0
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_the_same_work_again_is_answered_without_training_again(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        first = yield from stage.hear(Report)
        steps = stage.trainer.steps
        stage.say(assign)  # for a hello that was said before the report
        yield from stage.rest(2)
        assert stage.count(Report) == 0
        stage.say(Rollcall("s"))  # the server lost its connection, and the report
        yield from stage.hear(Hello)
        stage.welcome()
        stage.say(assign)
        again = yield from stage.hear(Report)
        assert again == first and stage.trainer.steps == steps
        yield from stage.collect(again)
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_what_was_received_is_dropped(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        report = yield from stage.hear(Report)
        for stale in (Received("s", 2, 1), Received("s", 1, 2), Received("of yesterday", 1, 1)):
            stage.say(stale)
        yield from stage.rest(1)
        yield from stage.collect(report)  # it is all still there
        stage.say(Received("s", 1, 1))
        stage.say(Fetch([Want(report.update.digest, 0, 1)]))
        yield from stage.rest(2)
        assert stage.count(Chunk) == 0
        stage.say(dataclasses.replace(assign, round=2))
        report = yield from stage.hear(Report)
        assert report.telemetry["previous_upload_s"] > 1
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def in_training(stage: Stage, steps: int = 2) -> Script:
    """Until the device has taken `steps` training steps more."""
    until = stage.trainer.steps + steps
    while stage.trainer.steps < until:
        stage.pump()
        yield


def test_the_same_work_said_again_does_not_disturb_training(stage: Stage) -> None:
    """The server repeats it on every hello, as after a lost connection."""
    assign = stage.make_assign(make_model(0, stage.layout), epochs=4)

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from in_training(stage)
        stage.say(assign)
        yield from in_training(stage)
        stage.say(Rollcall("s"))
        stage.say(assign)
        yield from in_training(stage)
        assert stage.trainer.steps < 4 * STEPS_AN_EPOCH
        yield from stage.hear(Hello)
        yield from stage.hear(Report)
        assert stage.trainer.steps == 4 * STEPS_AN_EPOCH and len(stage.trainer.given) == 1
        yield from stage.rest(2)
        assert stage.count(Report) == 0
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_late_work_does_not_take_the_place_of_newer(stage: Stage) -> None:
    """Work of round 1 comes again while round 2 is at work, with and without a roll call."""
    model = make_model(0, stage.layout)
    first = stage.make_assign(model, epochs=2)
    second = stage.make_assign(model, number=2, epochs=4)

    def script() -> Script:
        yield from stage.join()
        stage.say(first)
        yield from stage.hear(Report)
        steps = stage.trainer.steps
        stage.say(second)
        yield from in_training(stage)
        stage.say(first)
        yield from in_training(stage)
        assert stage.mailbox.drops == {(NAME, "stale"): 1}
        stage.say(Rollcall("s"))
        stage.say(first)  # was on its way, when the server called
        stage.say(second)
        report = yield from stage.hear(Report)
        assert report.round == 2
        assert stage.trainer.steps == steps + 4 * STEPS_AN_EPOCH  # it went on
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_a_resumed_server_may_go_back(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model, number=3))
        yield from stage.hear(Report)
        stage.say(Rollcall("s"))
        yield from stage.hear(Hello)
        stage.welcome()
        stage.say(stage.make_assign(model, number=2))
        report = yield from stage.hear(Report)
        assert report.round == 2
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_newer_work_supersedes_training(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model, [0, 1], epochs=1000))
        yield from in_training(stage)
        newer = stage.make_assign(model, [2, 3], number=2)
        stage.say(newer)
        report = yield from stage.hear(Report)
        assert (report.round, report.experts) == (2, [2, 3])
        result, _, _ = expected_training(newer, model, stage.shard, stage.layout)
        assert report.loss == result.loss  # nothing of the old work is left in it
        assert stage.trainer.steps < 50
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_a_round_that_begins_again_is_worked_on_anew(stage: Stage) -> None:
    """The same experts may be asked for: the answer must be to this attempt all the same."""
    model = make_model(0, stage.layout)
    assign = stage.make_assign(model)

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        first = yield from stage.hear(Report)
        stage.say(dataclasses.replace(assign, attempt=2))
        second = yield from stage.hear(Report)
        assert (first.attempt, second.attempt) == (1, 2)
        assert second.loss == first.loss and stage.trainer.steps == 4 * STEPS_AN_EPOCH
        stage.say(Received("s", 1, 1))  # late
        yield from stage.rest(1)
        yield from stage.collect(second)
        stage.say(dataclasses.replace(assign, attempt=3, epochs=0))
        failed = yield from stage.hear(Failed)
        assert (failed.round, failed.attempt) == (1, 3)
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_newer_work_supersedes_fetching(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.serving = False
        stage.say(stage.make_assign(model, [0, 1]))
        yield from stage.hear(Fetch)
        stage.serving = True
        stage.say(stage.make_assign(model, [2, 3], number=2))
        report = yield from stage.hear(Report)
        assert report.round == 2 and len(stage.trainer.given) == 1
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_a_stop_ends_training_at_once(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout), epochs=1000)

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from in_training(stage)
        stage.say(Stop("of yesterday", "stale"))
        yield from in_training(stage)
        stage.say(Stop("s", "enough"))
        yield from in_training(stage, 100)

    assert stage.play(script()) == "enough"
    assert stage.trainer.steps < 10


def test_a_rejection_ends_training_too(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout), epochs=1000)

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from in_training(stage)
        stage.say(Reject("s", "another device has this shard"))
        yield from in_training(stage, 100)

    with pytest.raises(FlexmoeError, match="another device has this shard"):
        stage.play(script())


def test_the_last_sessions_work_is_given_up(stage: Stage) -> None:
    """A server that starts anew wants nothing of what the one before it asked for."""
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model, epochs=1000, local_gate=True))
        yield from in_training(stage)
        stage.say(Rollcall("t"))
        hello = yield from stage.hear(Hello)
        assert hello.session == "t"
        stage.welcome("t")
        yield from stage.rest(2)
        steps = stage.trainer.steps
        assert steps < 50
        stage.say(stage.make_assign(model))  # of the old session: stale
        stage.say(stage.make_assign(model, session="t"))
        report = yield from stage.hear(Report)
        assert report.session == "t"
        assert stage.trainer.steps == steps + 2 * STEPS_AN_EPOCH
        stage.say(Stop("t", "done"))
        yield

    assert stage.play(script()) == "done"
    assert stage.mailbox.drops == {(NAME, "stale"): 1}


# --- work that cannot be done ------------------------------------------------------------------


def test_a_program_for_other_samples_fails() -> None:
    stage = Stage(shape=(5,))
    why = refused(stage, stage.make_assign(make_model(0, stage.layout)))
    assert "the program takes samples [5] of 3 classes, the shard has [4]" in why


def test_a_program_with_too_few_classes_fails() -> None:
    stage = Stage(classes=2)
    why = refused(stage, stage.make_assign(make_model(0, stage.layout)))
    assert "of 2 classes" in why and "labels below 3" in why


def test_a_program_that_is_none_fails(stage: Stage) -> None:
    stage.programs = [b"no program", b"neither"]
    assert "cannot be read" in refused(stage, stage.make_assign(make_model(0, stage.layout)))


def test_a_program_without_a_gate_fails(stage: Stage) -> None:
    weights = tuple(w for w in stage.layout.weights if w.name != GATE)
    bare = dataclasses.replace(stage.layout, weights=weights)
    stage.programs = [
        dataclasses.replace(bare, role=r).to_json().encode() for r in ("train", "evaluate")
    ]
    assert "gate" in refused(stage, stage.make_assign(make_model(0, stage.layout)))


@pytest.mark.parametrize("experts", [[1, 4], [-1, 2], [1], [0, 1, 2], [2, 2]])
def test_experts_that_the_program_does_not_have_fail(stage: Stage, experts: list[int]) -> None:
    model = make_model(0, stage.layout)
    assign = stage.make_assign(model)
    assign = dataclasses.replace(
        assign, experts=experts, expert_parts=[assign.expert_parts[0]] * len(experts)
    )
    assert "expert" in refused(stage, assign)


@pytest.mark.parametrize(
    ("part", "tensors"),
    [
        ("gate", {"gate": np.zeros((4, 6), np.float32)}),
        ("gate", {GATE: np.zeros((3, 6), np.float32)}),
        ("gate", {GATE: np.zeros((4, 7), np.float32)}),
        ("backbone", {"0.weight": np.zeros((6, 4), np.float32)}),
        ("backbone", {"more": np.zeros(1, np.float32)}),
    ],
    ids=["name", "rows", "features", "missing", "unknown"],
)
def test_weights_that_do_not_fit_the_program_fail(
    stage: Stage, part: str, tensors: Tensors
) -> None:
    assign = stage.make_assign(make_model(0, stage.layout))
    assert refused(stage, dataclasses.replace(assign, **{part: stage.part(part, tensors)}))


def test_a_round_that_the_shelf_cannot_hold_fails_before_anything_is_fetched() -> None:
    stage = Stage(shelf_bytes=20_000)
    assign = stage.make_assign(make_model(0, stage.layout))
    huge = BlobRef(bytes(16), 1 << 30)
    backbone = dataclasses.replace(assign.backbone, frames=[huge])
    why = refused(stage, dataclasses.replace(assign, backbone=backbone))
    assert "have 1024.0 MiB, the shelf holds 0.0 MiB" in why and "--shelf-mib" in why
    assert (huge.digest, 0) not in stage.mailbox.listened


def test_an_unknown_codec_fails_before_anything_is_fetched(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout), codec="int3")
    why = refused(stage, assign)
    assert "this device cannot code its update: unknown codec 'int3'" in why and "int8" in why
    assert (assign.backbone.frames[0].digest, 0) not in stage.mailbox.listened


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "adam"},
        {"optimizer": ""},
        {"batch": 0},
        {"batch": 10**7},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": 1e300},
        {"learning_rate": 1e-60},
        {"momentum": 1.0},
        {"momentum": 1 - 1e-12},
        {"weight_decay": -0.1},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"epsilon": 0.0},
        {"clip_norm": -1.0},
        {"seed": -1},
    ],
    ids=str,
)
def test_work_that_makes_no_sense_fails(stage: Stage, fields: dict[str, Any]) -> None:
    model = make_model(0, stage.layout)
    why = refused(stage, stage.make_assign(model, **fields))
    (name,) = fields
    assert "bad-assign" in why and name in why
    bad = stage.make_assign(model).backbone.frames[0].digest
    assert (bad, 0) not in stage.mailbox.listened  # only what the good work needs


def test_training_that_diverges_fails(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout), learning_rate=1e30, epochs=9)
    with np.errstate(all="ignore"):
        assert "diverged" in refused(stage, assign)


def test_failed_work_is_tried_anew_when_it_is_asked_for_again(stage: Stage) -> None:
    stage.programs = [b"no program", b"neither"]
    assign = stage.make_assign(make_model(0, stage.layout))

    def script() -> Script:
        yield from stage.join()
        for _ in range(2):
            stage.say(assign)
            yield from stage.hear(Failed)
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


# --- the gate that never leaves the device -----------------------------------------------------


def test_a_local_gate_stays_and_goes_on_from_round_to_round(stage: Stage) -> None:
    models = [make_model(seed, stage.layout) for seed in range(3)]

    def script() -> Script:
        yield from stage.join()
        first = stage.make_assign(models[0], [1, 3], local_gate=True)
        stage.say(first)
        report = yield from stage.hear(Report)
        update = yield from stage.collect(report)
        assert list(update) == ["backbone", "expert:1", "expert:3"]
        _, _, after = expected_training(first, models[0], stage.shard, stage.layout)
        stage.say(Received("s", 1, 1))

        # Expert 3 is kept: its row is the device's own. Expert 2 is new: the server's.
        second = stage.make_assign(models[1], [2, 3], number=2, local_gate=True)
        stage.say(second)
        report = yield from stage.hear(Report)
        given = stage.trainer.given[1][GATE]
        assert given[3].tobytes() == after.gate[3].tobytes()
        assert given[2].tobytes() == models[1].gate[2].tobytes()
        assert not given[[0, 1]].any()
        stage.say(Received("s", 2, 1))

        # Two rounds later expert 1 comes back, and its row with it.
        stage.say(stage.make_assign(models[2], [0, 1], number=3, local_gate=True))
        yield from stage.hear(Report)
        given = stage.trainer.given[2][GATE]
        assert given[1].tobytes() == after.gate[1].tobytes()
        assert given[0].tobytes() == models[2].gate[0].tobytes()
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_work_that_was_given_up_leaves_the_local_gate_alone(stage: Stage) -> None:
    models = [make_model(seed, stage.layout) for seed in range(2)]

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(models[0], epochs=1000, local_gate=True))
        yield from in_training(stage)
        stage.say(stage.make_assign(models[1], number=2, local_gate=True))
        yield from stage.hear(Report)
        assert stage.trainer.given[1][GATE][1].tobytes() == models[1].gate[1].tobytes()
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())


def test_a_local_gate_does_not_outlive_its_session(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        stage.say(stage.make_assign(model, local_gate=True))
        yield from stage.hear(Report)
        stage.say(Rollcall("t"))
        yield from stage.join("t")
        stage.say(stage.make_assign(model, session="t", local_gate=True))
        yield from stage.hear(Report)
        assert stage.trainer.given[1][GATE].tobytes() == stage.trainer.given[0][GATE].tobytes()
        stage.say(Stop("t", "done"))
        yield

    stage.play(script())


def test_a_shared_gate_always_starts_from_the_servers(stage: Stage) -> None:
    models = [make_model(seed, stage.layout) for seed in range(2)]

    def script() -> Script:
        yield from stage.join()
        for number, model in enumerate(models, 1):
            stage.say(stage.make_assign(model, number=number))
            yield from stage.hear(Report)
        assert stage.trainer.given[1][GATE][[1, 3]].tobytes() == models[1].gate[[1, 3]].tobytes()
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())
