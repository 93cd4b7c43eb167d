"""How a device comes to the contents that its work builds on, in a whole device's life."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.downlink import RENEWED_S, STALLED_S
from edge_runtime.parts import GATE, ModelParts, Tensors
from edge_runtime.program_cache import ProgramCache
from edge_runtime.protocol.blob import chunk, digest
from edge_runtime.protocol.messages import (
    MIN_CHUNK_BYTES,
    Artifact,
    Assign,
    Chunk,
    Failed,
    Fetch,
    Hello,
    Holding,
    Report,
    Rollcall,
    Stop,
    Want,
    pack,
)
from edge_runtime.protocol.topics import blob_topic, down_topic
from edge_runtime.protocol.transfer import WINDOW
from edge_runtime.tensor_blob import pack_tensors
from edge_runtime.transport.memory_link import MemoryBroker
from edge_runtime.work import contents_of
from tests.edge_runtime.stage import (
    FEDERATION,
    NAME,
    STEPS_AN_EPOCH,
    Script,
    Stage,
    coded,
    expected_training,
    make_model,
)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def wide(**options: object) -> Stage:
    """A stage whose backbone takes 20 chunks: more than two windows."""
    return Stage(chunk_bytes=MIN_CHUNK_BYTES, width=4_000, **options)


def say_stop(stage: Stage) -> Script:
    stage.say(Stop("s", "done"))
    yield


# --- deltas ------------------------------------------------------------------------------------


def delta_of(model: ModelParts, seed: int) -> ModelParts:
    """What a round may change of `model`: all of it, a bit."""
    rng = np.random.default_rng(seed)

    def draw(tensors: Tensors) -> Tensors:
        return {n: rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in tensors.items()}

    gate = draw({GATE: model.gate})[GATE]
    return ModelParts(draw(model.backbone), gate, tuple(map(draw, model.experts)))


def plus(model: ModelParts, delta: ModelParts) -> ModelParts:
    def add(one: Tensors, other: Tensors) -> Tensors:
        return {name: value + other[name] for name, value in one.items()}

    experts = tuple(map(add, model.experts, delta.experts))
    return ModelParts(add(model.backbone, delta.backbone), model.gate + delta.gate, experts)


def part_of(model: ModelParts, kind: str) -> Tensors:
    if kind == "gate":
        return {GATE: model.gate}
    return model.backbone if kind == "backbone" else model.experts[int(kind.partition(":")[2])]


def follow(
    stage: Stage, before: Assign, model: ModelParts, deltas: Sequence[ModelParts], number: int = 2
) -> Assign:
    """The work `before` again on `model`, which `deltas` lead to from what it built on."""

    def step(kind: str, part: Artifact) -> Artifact:
        frames = [stage.frame(kind, coded(part_of(delta, kind))) for delta in deltas]
        return Artifact(digest(pack_tensors(part_of(model, kind))), part.digest, frames)

    new = [step(kind, part) for kind, part in contents_of(before)[2:]]
    backbone, gate, *experts = new
    return dataclasses.replace(
        before, round=number, seed=number, backbone=backbone, gate=gate, expert_parts=experts
    )


def test_versions_are_reached_by_chains_of_deltas(stage: Stage) -> None:
    """Each device that applies them has the same bits; of each part one version stays."""
    model = make_model(0, stage.layout)
    deltas = [delta_of(model, seed) for seed in (1, 2, 3)]
    newest = plus(plus(plus(model, deltas[0]), deltas[1]), deltas[2])

    def script() -> Script:
        yield from stage.join()
        first = stage.make_assign(model)
        stage.say(first)
        yield from stage.hear(Report)
        second = follow(stage, first, newest, deltas)
        before = stage.mailbox.listened.copy()
        stage.say(second)
        report = yield from stage.hear(Report)
        result, _, _ = expected_training(second, newest, stage.shard, stage.layout)
        assert report.loss == result.loss
        for expert, part in zip(second.experts, second.expert_parts, strict=True):
            assert stage.shelf.get(part.digest) == pack_tensors(newest.experts[expert])
        assert set(stage.mailbox.listened - before) == {
            (ref.digest, 0) for _, part in contents_of(second)[2:] for ref in part.frames
        }
        held = {part.digest for _, part in contents_of(second)}
        assert set(stage.shelf.names) == held and report.dropped == []
        yield from say_stop(stage)

    stage.play(script())
    assert not stage.mailbox.drops


def test_a_base_that_is_not_there_is_told_and_the_work_planned_anew(stage: Stage) -> None:
    model = make_model(0, stage.layout)
    delta = delta_of(model, 1)
    newer = plus(model, delta)

    def script() -> Script:
        yield from stage.join()
        first = stage.make_assign(model)
        by_deltas = follow(stage, first, newer, [delta])
        stage.say(by_deltas)
        said = yield from stage.hear(Holding)
        assert said == Holding("s", 2, 1, [])
        whole = dataclasses.replace(stage.make_assign(newer), round=2, seed=2)
        stage.say(by_deltas)  # it crossed the answer, and says nothing new
        stage.say(whole)
        report = yield from stage.hear(Report)
        result, _, _ = expected_training(whole, newer, stage.shard, stage.layout)
        assert report.loss == result.loss and stage.said[Holding] == 1
        yield from say_stop(stage)

    stage.play(script())


def test_contents_that_were_named_without_frames_have_to_be_there(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        assign = stage.make_assign(model)
        bare = dataclasses.replace(assign, gate=Artifact(assign.gate.digest, b"", []))
        stage.say(bare)
        said = yield from stage.hear(Holding)
        assert said.held == []
        stage.say(assign)
        yield from stage.hear(Report)
        stage.say(dataclasses.replace(bare, round=2))
        yield from stage.hear(Report)
        yield from say_stop(stage)

    stage.play(script())


def test_work_that_is_never_planned_right_fails(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        assign = stage.make_assign(model)
        for number in range(4):
            wrong = Artifact(assign.gate.digest, bytes([number]) * 16, assign.gate.frames)
            stage.say(dataclasses.replace(assign, gate=wrong))
            yield from stage.rest(2)
        assert stage.count(Holding) == 3
        failed = yield from stage.hear(Failed)
        assert failed.reason == (
            "missing-content: the work builds on gate, which is not here; the server was told 3 "
            "times what is"
        )
        stage.say(assign)
        yield from stage.hear(Report)
        yield from say_stop(stage)

    stage.play(script())


def test_a_base_that_leads_elsewhere_is_dropped(stage: Stage) -> None:
    model = make_model(0, stage.layout)
    delta = delta_of(model, 1)
    newer = plus(model, delta)

    def script() -> Script:
        yield from stage.join()
        first = stage.make_assign(model)
        stage.say(first)
        yield from stage.hear(Report)
        good = follow(stage, first, newer, [delta])
        wrong = dataclasses.replace(good.backbone, frames=good.backbone.frames * 2)
        stage.say(dataclasses.replace(good, backbone=wrong))
        said = yield from stage.hear(Holding)
        # The gate was behind it, and did not come to that.
        assert first.backbone.digest not in said.held and first.gate.digest in said.held
        whole = stage.part("backbone", newer.backbone)
        stage.say(dataclasses.replace(good, backbone=whole))
        report = yield from stage.hear(Report)
        result, _, _ = expected_training(good, newer, stage.shard, stage.layout)
        assert report.loss == result.loss
        yield from say_stop(stage)

    stage.play(script())
    assert stage.mailbox.drops[NAME, "bad-digest"] == 1


@pytest.mark.parametrize("kind", ["backbone", "program"])
def test_a_whole_frame_that_leads_elsewhere_fails(stage: Stage, kind: str) -> None:
    """There is no other way to try."""
    assign = stage.make_assign(make_model(0, stage.layout))
    field = "training_program" if kind == "program" else kind
    wrong = dataclasses.replace(getattr(assign, field), digest=b"?" * 16)

    def script() -> Script:
        yield from stage.join()
        stage.say(dataclasses.replace(assign, **{field: wrong}))
        failed = yield from stage.hear(Failed)
        assert failed.reason.startswith(f"bad-digest: {kind} cannot be built: ")
        assert "expected 3f3f3f3f" in failed.reason and stage.said[Holding] == 0
        stage.say(assign)
        yield from stage.hear(Report)
        yield from say_stop(stage)

    stage.play(script())


@pytest.mark.parametrize("data", [b"", b"\x03no compressor", b"\x01not deflate", b"\x00"])
def test_frames_that_are_none_fail(stage: Stage, data: bytes) -> None:
    assign = stage.make_assign(make_model(0, stage.layout))
    frame = stage.frame("program", data or b"?")
    program = dataclasses.replace(assign.training_program, frames=[frame])

    def script() -> Script:
        yield from stage.join()
        stage.say(dataclasses.replace(assign, training_program=program))
        failed = yield from stage.hear(Failed)
        assert "program cannot be built" in failed.reason
        yield from say_stop(stage)

    stage.play(script())


def test_two_experts_of_the_same_content_are_one(stage: Stage) -> None:
    """They travel once, and go on apart."""
    model = make_model(0, stage.layout)
    twins = dataclasses.replace(model, experts=(model.experts[0],) * 4)
    delta = delta_of(twins, 1)
    apart = plus(twins, delta)

    def script() -> Script:
        yield from stage.join()
        first = stage.make_assign(twins)
        assert first.expert_parts[0] == first.expert_parts[1]
        stage.say(first)
        yield from stage.hear(Report)
        assert set(stage.mailbox.listened.values()) == {1}
        second = follow(stage, first, apart, [delta])
        stage.say(second)
        report = yield from stage.hear(Report)
        result, _, _ = expected_training(second, apart, stage.shard, stage.layout)
        assert report.loss == result.loss and stage.said[Holding] == 0
        yield from say_stop(stage)

    stage.play(script())


# --- plans while work is under way ----------------------------------------------------------------


def test_the_same_contents_by_other_frames_do_not_disturb_training(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout), epochs=4)
    bare = dataclasses.replace(assign, backbone=Artifact(assign.backbone.digest, b"", []))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        while stage.trainer.steps < 2:
            stage.pump()
            yield
        stage.say(bare)
        first = yield from stage.hear(Report)
        assert stage.trainer.steps == 4 * STEPS_AN_EPOCH and len(stage.trainer.given) == 1
        stage.say(Rollcall("s"))  # the report may have been lost
        yield from stage.hear(Hello)
        stage.welcome()
        stage.say(bare)
        again = yield from stage.hear(Report)
        assert again == first and len(stage.trainer.given) == 1
        yield from say_stop(stage)

    stage.play(script())


def test_another_plan_takes_the_place_of_the_one_under_way(stage: Stage) -> None:
    """Whoever plans anew knows better; what is there already stays."""
    stage.serving = False
    assign = stage.make_assign(make_model(0, stage.layout))
    lost = stage.frame("gate", b"this one never comes")
    stage.serving = True
    gate = dataclasses.replace(assign.gate, frames=[lost])
    del stage.frames[lost.digest]

    def script() -> Script:
        yield from stage.join()
        stage.say(dataclasses.replace(assign, gate=gate))
        yield from stage.rest(45)
        stage.say(assign)
        yield from stage.hear(Report)
        assert stage.mailbox.listened[assign.backbone.frames[0].digest, 0] == 1
        assert stage.mailbox.unlistened[lost.digest, 0] == 1
        yield from say_stop(stage)

    stage.play(script())


def test_a_chunk_that_the_plan_before_listened_to_is_welcome() -> None:
    stage = wide()
    stage.serving = False
    assign = stage.make_assign(make_model(0, stage.layout, scale=1e-3), epochs=1)
    (backbone,) = assign.backbone.frames
    data, junk = stage.frames[backbone.digest], stage.frame("program", bytes(20 * MIN_CHUNK_BYTES))
    program = dataclasses.replace(assign.training_program, frames=[junk])

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.rest(1)
        stage.say(dataclasses.replace(assign, training_program=program))
        # It is on its way already. The new plan's window is full of other chunks.
        stage.publish(chunk(backbone.digest, data, 3, stage.chunk_bytes))
        stage.say(assign)
        yield from stage.rest(1)
        stage.serving = True
        yield from stage.hear(Report)
        yield from say_stop(stage)

    stage.play(script())


def test_a_server_that_comes_back_may_cut_frames_otherwise() -> None:
    stage = wide()
    stage.serving = False
    assign = stage.make_assign(make_model(0, stage.layout, scale=1e-3), epochs=1)

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.rest(1)
        stage.serving, stage.chunk_bytes = True, 2 * MIN_CHUNK_BYTES
        stage.make_assign(make_model(0, stage.layout, scale=1e-3))
        stage.welcome()
        stage.say(assign)
        report = yield from stage.hear(Report)
        yield from stage.collect(report)
        yield from say_stop(stage)

    stage.play(script())


# --- chunks ------------------------------------------------------------------------------------


def test_what_the_broker_retains_is_not_asked_for() -> None:
    stage = wide()
    assign = stage.make_assign(make_model(0, stage.layout, scale=1e-3), epochs=1)
    (backbone,) = assign.backbone.frames
    assert backbone.chunks(stage.chunk_bytes) > 2 * WINDOW

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.hear(Report)
        assert not stage.asked and set(stage.mailbox.listened.values()) == {1}
        assert stage.mailbox.listened == stage.mailbox.unlistened
        yield from say_stop(stage)

    stage.play(script())
    assert not stage.mailbox.drops


def test_what_the_broker_does_not_retain_is_asked_for() -> None:
    stage = wide(retained=False)
    assign = stage.make_assign(make_model(0, stage.layout, scale=1e-3), epochs=1)

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        began_s = stage.world.now_s
        yield from stage.hear(Report)
        assert stage.asked == stage.mailbox.listened and set(stage.asked.values()) == {1}
        assert stage.world.now_s - began_s < 5  # nothing was waited for
        yield from say_stop(stage)

    stage.play(script())
    assert not stage.mailbox.drops


def test_a_lost_chunk_is_asked_for_again(stage: Stage) -> None:
    stage.serving = False
    assign = stage.make_assign(make_model(0, stage.layout))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.hear(Fetch)
        yield from stage.hear(Fetch)
        stage.serving = True
        report = yield from stage.hear(Report)
        assert report.round == 1
        yield from say_stop(stage)

    stage.play(script())


def lose_connection(stage: Stage) -> None:
    stage.link.kill()
    stage.link.restore()


def restart_broker(stage: Stage) -> None:
    stage.world.broker.restart()
    stage.server_link.restore()
    stage.link.restore()


@pytest.mark.parametrize("loss", [lose_connection, restart_broker])
@pytest.mark.parametrize("retained", [True, False])
def test_after_a_loss_only_missing_chunks_travel_again(
    loss: Callable[[Stage], None], retained: bool
) -> None:
    stage = wide(retained=retained)
    stage.serving = False
    assign = stage.make_assign(make_model(0, stage.layout, scale=1e-3), epochs=1)
    (backbone,) = assign.backbone.frames
    data = stage.frames[backbone.digest]
    came: list[int] = []

    def publish_rest() -> None:
        for name, frame in stage.frames.items():
            for index in range(-(-len(frame) // stage.chunk_bytes)):
                if not (name == backbone.digest and index in came):
                    stage.publish(chunk(name, frame, index, stage.chunk_bytes))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        # The window is full of what comes before the backbone, and its begin.
        yield from stage.rest(0.1)
        for ref in (*assign.training_program.frames, *assign.evaluation_program.frames):
            stage.publish(chunk(ref.digest, stage.frames[ref.digest], 0, stage.chunk_bytes))
        yield from stage.rest(0.1)
        for index in range(3):
            came.append(index)
            stage.publish(chunk(backbone.digest, data, index, stage.chunk_bytes))
        yield from stage.rest(0.2)
        loss(stage)
        stage.serving = True
        if retained and loss is lose_connection:
            publish_rest()
        before, lost_s = stage.asked.copy(), stage.world.now_s
        stage.say(assign)
        hello = yield from stage.hear(Hello)
        assert len(hello.held) == 2  # the programs
        stage.welcome()
        stage.say(assign)
        yield from stage.hear(Report)
        again = stage.asked - before
        assert all(again[backbone.digest, index] == 0 for index in range(3))
        assert max(again.values(), default=0) <= 1
        assert stage.world.now_s - lost_s < 0.5 + (RENEWED_S if retained else 0)
        if retained and loss is lose_connection:
            assert not again
        assert stage.trainer.steps == STEPS_AN_EPOCH
        yield from say_stop(stage)

    stage.play(script())
    assert not stage.mailbox.drops


def test_a_slow_link_is_not_asked_for_all_again_after_a_loss() -> None:
    """What the broker retains is on its way; to be sure, the server is asked for one chunk."""
    stage = wide()
    stage.serving = False
    assign = stage.make_assign(make_model(0, stage.layout, scale=1e-3), epochs=1)

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.rest(0.5)
        lose_connection(stage)
        yield from stage.rest(RENEWED_S + 1)
        assert stage.asked.total() == 1
        for name, frame in stage.frames.items():
            for index in range(-(-len(frame) // stage.chunk_bytes)):
                stage.publish(chunk(name, frame, index, stage.chunk_bytes))
        yield from stage.hear(Report)
        assert stage.asked.total() == 1
        yield from say_stop(stage)

    stage.play(script())


def test_a_damaged_chunk_is_replaced(stage: Stage) -> None:
    """Anyone may publish on a blob's topic, and have it retained."""
    model = make_model(0, stage.layout)
    assign = stage.make_assign(model)
    (frame,) = assign.backbone.frames
    damaged = stage.frames[frame.digest][::-1]
    stage.server_link.publish(blob_topic(FEDERATION, frame.digest, 0), damaged, retain=True)

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        report = yield from stage.hear(Report)
        result, _, _ = expected_training(assign, model, stage.shard, stage.layout)
        assert report.loss == result.loss
        yield from say_stop(stage)

    stage.play(script())
    assert stage.mailbox.drops[NAME, "bad-digest"] in (1, 2)


def test_a_frame_that_never_arrives_whole_fails_the_work(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout))
    (frame,) = assign.backbone.frames
    right = stage.frames[frame.digest]
    stage.frames[frame.digest] = right[::-1]
    stage.publish(chunk(frame.digest, right[::-1], 0, stage.chunk_bytes))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        failed = yield from stage.hear(Failed)
        reason = "bad-digest: a frame of backbone arrives damaged"
        assert failed == Failed("s", 1, 1, reason, 0)
        stage.frames[frame.digest] = right
        stage.publish(chunk(frame.digest, right, 0, stage.chunk_bytes))
        stage.say(assign)
        yield from stage.hear(Report)
        yield from say_stop(stage)

    stage.play(script())


def test_a_transfer_that_stands_still_fails_and_says_what_is_missing(stage: Stage) -> None:
    stage.serving = False
    assign = stage.make_assign(make_model(0, stage.layout))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        began_s = stage.world.now_s
        yield from stage.rest(STALLED_S / 2)
        stage.link.kill()
        yield from stage.rest(10 * STALLED_S)
        assert stage.count(Failed) == 0  # a device without a network waits for it
        stage.link.restore()
        failed = yield from stage.hear(Failed)
        assert stage.world.now_s - began_s > 11 * STALLED_S
        assert failed.reason.startswith("stalled: no chunk at all came in 322 s; missing 1.9 KiB")
        assert "of program, backbone, gate and 2 more" in failed.reason
        yield from say_stop(stage)

    stage.play(script())


def test_a_transfer_that_stops_in_between_says_so() -> None:
    stage = wide()
    stage.serving = False
    assign = stage.make_assign(make_model(0, stage.layout, scale=1e-3))
    (frame,) = assign.training_program.frames

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.rest(1)
        stage.publish(chunk(frame.digest, stage.frames[frame.digest], 0, stage.chunk_bytes))
        failed = yield from stage.hear(Failed)
        assert failed.reason.startswith("stalled: nothing came for 64 s; missing ")
        yield from say_stop(stage)

    stage.play(script())


def test_topics_that_the_broker_refuses_are_told_at_once(stage: Stage) -> None:
    stage.world.broker = broker = MemoryBroker(refuses=f"fm4/{FEDERATION}/b/#")
    for link in (stage.server_link, stage.link):
        link._broker = broker
        link.restore()
    assign = stage.make_assign(make_model(0, stage.layout))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        began_s = stage.world.now_s
        failed = yield from stage.hear(Failed)
        assert stage.world.now_s - began_s < 2
        assert failed.reason.startswith(
            f"the broker refuses the subscription to fm4/{FEDERATION}/b/"
        )
        assert failed.reason.endswith("; check its access rules")
        yield from say_stop(stage)

    stage.play(script())


def test_chunks_may_come_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker promises none for what it retains on several topics."""
    stage = wide()
    assign = stage.make_assign(make_model(0, stage.layout, scale=1e-3), epochs=1)
    take = stage.link._take_retained
    monkeypatch.setattr(stage.link, "_take_retained", lambda names: take(list(names)[::-1]))

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.hear(Report)
        assert not stage.asked and set(stage.mailbox.listened.values()) == {1}
        yield from say_stop(stage)

    stage.play(script())


def test_what_came_for_one_attempt_is_there_for_the_next() -> None:
    stage = wide()
    stage.serving = False
    model = make_model(0, stage.layout, scale=1e-3)
    assign = stage.make_assign(model, epochs=1)
    (backbone,) = assign.backbone.frames

    def script() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.rest(0.5)
        for index in (1, 4):
            part = chunk(backbone.digest, stage.frames[backbone.digest], index, stage.chunk_bytes)
            stage.publish(part)
        yield from stage.rest(0.5)
        before = stage.mailbox.listened.copy()
        stage.say(dataclasses.replace(assign, attempt=2))
        yield from stage.rest(0.5)
        stage.serving = True
        stage.make_assign(model)
        report = yield from stage.hear(Report)
        result, _, _ = expected_training(assign, model, stage.shard, stage.layout)
        assert report.attempt == 2 and report.loss == result.loss
        again = {
            index for name, index in stage.mailbox.listened - before if name == backbone.digest
        }
        assert again.isdisjoint({1, 4}) and 0 in again
        yield from say_stop(stage)

    stage.play(script())


def test_a_server_that_does_not_answer_what_is_held_fails_the_work(stage: Stage) -> None:
    assign = stage.make_assign(make_model(0, stage.layout))
    bare = dataclasses.replace(assign, backbone=Artifact(assign.backbone.digest, b"", []))

    def script() -> Script:
        yield from stage.join()
        stage.say(bare)
        yield from stage.hear(Holding)
        failed = yield from stage.hear(Failed)
        assert failed.reason.endswith("missing backbone")
        yield from say_stop(stage)

    stage.play(script())


def test_messages_that_have_no_place_are_counted(stage: Stage) -> None:
    model = make_model(0, stage.layout)
    unknown = b"?" * 16

    def script() -> Script:
        yield from stage.join()
        part = pack(Chunk(unknown, 0, b"data"))
        stage.server_link.publish(down_topic(FEDERATION, NAME), part)
        stage.say(stage.make_assign(model, session="of yesterday"))
        stage.server_link.publish(down_topic(FEDERATION, NAME), b"garbage")
        yield from stage.rest(2)
        expected = {"direction": 1, "stale": 1, "malformed": 1}
        assert {reason: n for (_, reason), n in stage.mailbox.drops.items()} == expected
        stage.serving = False
        assign = stage.make_assign(make_model(1, stage.layout))
        (frame,) = assign.backbone.frames
        stage.say(assign)
        yield from stage.hear(Fetch)
        stage.server_link.publish(blob_topic(FEDERATION, frame.digest, 0), b"data")
        stage.serving = True
        report = yield from stage.hear(Report)
        stage.say(Fetch([Want(unknown, 0, 1), Want(report.update.digest, 0, 1)]))
        sent = yield from stage.hear(Chunk)
        assert digest(sent.data) == sent.digest == report.update.digest
        yield from say_stop(stage)

    stage.play(script())
    assert stage.mailbox.drops[NAME, "bad-chunk"] == 1
    assert stage.mailbox.drops[NAME, "unknown-blob"] == 1


# --- what stays --------------------------------------------------------------------------------


def test_an_expert_that_returns_needs_nothing_while_there_is_room(stage: Stage) -> None:
    model = make_model(0, stage.layout)

    def script() -> Script:
        yield from stage.join()
        for number, experts in enumerate([(0, 1), (2, 3), (0, 1), (0, 3)], 1):
            stage.say(stage.make_assign(model, experts, number))
            report = yield from stage.hear(Report)
            assert report.dropped == []
        assert set(stage.mailbox.listened.values()) == {1}
        yield from say_stop(stage)

    stage.play(script())


def test_what_left_for_want_of_room_is_told(stage: Stage) -> None:
    model = make_model(0, stage.layout)
    needed = sum(
        len(content)
        for content in (
            *stage.programs,
            pack_tensors(model.backbone),
            pack_tensors({GATE: model.gate}),
            *(pack_tensors(expert) for expert in model.experts[:3]),
        )
    )
    stage = Stage(shelf_bytes=needed)

    def script() -> Script:
        yield from stage.join()
        first = stage.make_assign(model, [0, 1])
        stage.say(first)
        yield from stage.hear(Report)
        stage.say(stage.make_assign(model, [2, 3], number=2))
        report = yield from stage.hear(Report)
        assert report.dropped == [first.expert_parts[0].digest]  # the least recently used
        stage.say(stage.make_assign(model, [2, 3], number=3))
        report = yield from stage.hear(Report)
        assert report.dropped == []
        gone = Artifact(first.expert_parts[0].digest, b"", [])
        second = stage.make_assign(model, [0, 1], number=4)
        stage.say(dataclasses.replace(second, expert_parts=[gone, second.expert_parts[1]]))
        said = yield from stage.hear(Holding)
        assert gone.digest not in said.held and first.expert_parts[1].digest in said.held
        stage.say(second)
        yield from stage.hear(Report)
        yield from say_stop(stage)

    stage.play(script())


def test_contents_that_do_not_fit_together_fail() -> None:
    """Nothing that the work needs makes room for the rest of it."""
    model = make_model(0, Stage().layout)
    assign = Stage().make_assign(model)
    parts = [model.backbone, {GATE: model.gate}, model.experts[1], model.experts[3]]
    size_bytes = sum(len(content) for content in [*Stage().programs, *map(pack_tensors, parts)])
    for spare_bytes in (0, -1):
        stage = Stage(shelf_bytes=size_bytes + spare_bytes)
        stage.make_assign(model)

        def script(stage: Stage = stage, fits: bool = not spare_bytes) -> Script:
            yield from stage.join()
            stage.say(assign)
            if fits:
                yield from stage.hear(Report)
            else:
                failed = yield from stage.hear(Failed)
                assert "does not fit" in failed.reason and "enlarge it" in failed.reason
            yield from say_stop(stage)

        stage.play(script())


def test_a_damaged_program_on_the_disk_travels_again(tmp_path: Path) -> None:
    stage = Stage(programs=ProgramCache(tmp_path))
    assign = stage.make_assign(make_model(0, stage.layout))
    name = assign.training_program.digest

    def first() -> Script:
        yield from stage.join()
        stage.say(assign)
        yield from stage.hear(Report)
        yield from say_stop(stage)

    stage.play(first())
    (tmp_path / name.hex()).write_bytes(b"damaged")
    stage = Stage(programs=ProgramCache(tmp_path))
    stage.make_assign(make_model(0, stage.layout))
    bare = dataclasses.replace(assign, training_program=Artifact(name, b"", []))

    def second() -> Script:
        hello = yield from stage.hear(Hello)
        assert name in hello.held
        stage.welcome()
        stage.say(bare)
        said = yield from stage.hear(Holding)
        assert said.held == [assign.evaluation_program.digest]
        stage.say(assign)
        yield from stage.hear(Report)
        yield from say_stop(stage)

    stage.play(second())
    assert digest((tmp_path / name.hex()).read_bytes()) == name


def test_frames_that_overflow_lead_nowhere(stage: Stage) -> None:
    """A part holds finite values only, whatever its digest says."""
    model = make_model(0, stage.layout)
    assign = stage.make_assign(model)
    big = {name: np.full_like(value, 3e38) for name, value in model.backbone.items()}
    with np.errstate(over="ignore"):
        sums = pack_tensors({name: value + value for name, value in big.items()})
    frames = [stage.frame("backbone", coded(big, True)), stage.frame("backbone", coded(big))]
    backbone = Artifact(digest(sums), b"", frames)

    def script() -> Script:
        yield from stage.join()
        stage.say(dataclasses.replace(assign, backbone=backbone))
        failed = yield from stage.hear(Failed)
        assert "not-finite" in failed.reason
        yield from say_stop(stage)

    stage.play(script())
