"""Updates: what training changed, coded; and, over rounds, nothing of it is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.codec import decode
from edge_runtime.parts import GATE, ModelParts, Tensors
from edge_runtime.protocol.messages import Assign, Fetch, Gone, Received, Report, Rollcall, Stop
from edge_runtime.residual import Residuals
from edge_runtime.update import Update, code_update
from edge_runtime.work import changes
from tests.edge_runtime.reference_trainer import make_toy_layout
from tests.edge_runtime.stage import Script, Stage, make_model

LAYOUT = make_toy_layout("train")


def work(number: int = 1, experts: tuple[int, ...] = (1, 3), codec: str = "raw") -> Assign:
    assign = Stage().make_assign(make_model(0, LAYOUT), experts, number)
    return dataclasses.replace(assign, codec=codec)


def trained(seed: int, experts: tuple[int, ...] = (1, 3)) -> tuple[ModelParts, ModelParts]:
    """The parts of a work, before and after."""
    before, after = make_model(seed, LAYOUT), make_model(seed + 100, LAYOUT)
    return tuple(  # type: ignore[return-value]
        ModelParts(model.backbone, model.gate, tuple(model.experts[e] for e in experts))
        for model in (before, after)
    )


def decoded(update: Update, assign: Assign, like: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """An update's sections as the server reads them."""
    found, data = {}, update.data
    for kind, size_bytes in update.sections:
        shapes = {name: value.shape for name, value in like[kind].items()}
        found[kind] = decode(data[:size_bytes], shapes, 1 << 20)
        data = data[size_bytes:]
    assert not data
    return found


def test_sections_follow_each_other_in_the_order_of_the_experts() -> None:
    for local_gate in (False, True):
        assign = dataclasses.replace(work(), local_gate=local_gate)
        parts = trained(1)
        update = code_update(assign, *parts, Residuals())
        change = dict(changes(assign, *parts))
        gate = [] if local_gate else ["gate"]
        kinds = [kind for kind, _ in update.sections]
        assert kinds == ["backbone", *gate, "expert:1", "expert:3"] == list(change)
        found = decoded(update, assign, change)
        for kind in kinds:
            for name, value in change[kind].items():
                assert found[kind][name].tobytes() == value.tobytes()


def test_the_same_work_codes_to_the_same_bytes() -> None:
    one = code_update(work(codec="int8"), *trained(1), Residuals())
    assert one == code_update(work(codec="int8"), *trained(1), Residuals())
    other = dataclasses.replace(work(codec="int8"), seed=7)
    assert one != code_update(other, *trained(1), Residuals())


def test_sections_are_rounded_independently() -> None:
    """Two experts with the same change must not share their errors."""
    before, after = trained(1)
    twins = [dataclasses.replace(parts, experts=parts.experts[:1] * 2) for parts in (before, after)]
    update = code_update(work(codec="int4"), twins[0], twins[1], Residuals())
    *_, first, second = (size_bytes for _, size_bytes in update.sections)
    blob = update.data[-first - second :]
    assert first == second and blob[:first] != blob[first:]


@pytest.mark.parametrize("codec", ["raw", "fp16", "int8", "int4"])
def test_what_an_unbiased_codec_loses_is_not_kept(codec: str) -> None:
    residuals = Residuals()
    for number in (1, 2):
        code_update(work(number, codec=codec), *trained(number), residuals)
        residuals.settle(number)
    assert residuals.used_bytes == 0


def test_with_a_biased_codec_all_of_it_arrives_in_the_end() -> None:
    """What was sent and what is left adds up to what was trained, for each part on its own."""
    residuals = Residuals()
    wanted: dict[str, Tensors] = {}
    sent: dict[str, Tensors] = {}
    plan = [(0, 1), (1, 3), (0, 2), (1, 2), (0, 3)]
    for number, experts in enumerate(plan, 1):
        assign, parts = work(number, experts, "topk(0.2)"), trained(number, experts)
        if number == 4:
            assign = dataclasses.replace(assign, counted=2)
        change = dict(changes(assign, *parts))
        update = code_update(assign, *parts, residuals)
        found = decoded(update, assign, change)
        if number == 3:  # this one is late: nothing of it counts
            continue
        for total, added in ((wanted, change), (sent, found)):
            gate = added.pop("gate")[GATE]
            rows = {f"gate:{e}": {GATE: row} for e, row in zip(experts, gate, strict=True)}
            for kind, tensors in {**added, **rows}.items():
                for name, value in tensors.items():
                    part = total.setdefault(kind, {})
                    part[name] = part.get(name, np.zeros_like(value)) + value
    residuals.settle(len(plan))
    for kind, tensors in wanted.items():
        for name, value in tensors.items():
            left = residuals.of(kind)[name]
            assert np.abs(left).max() > 0.1
            np.testing.assert_allclose(sent[kind][name] + left, value, atol=1e-4)


@pytest.mark.parametrize("plain", ["raw", "int8"])
def test_a_codec_that_loses_nothing_sends_what_another_left(plain: str) -> None:
    """The codec may change from round to round: nothing is sent twice, and nothing stays behind."""
    residuals = Residuals()
    coders = ["topk(0.2)", "topk(0.2)", plain, plain, "topk(0.2)"]
    due: dict[str, Tensors] = {}  # what was trained and did not arrive
    for number, codec in enumerate(coders, 1):
        assign, parts = work(number, codec=codec), trained(number)
        change = dict(changes(assign, *parts))
        found = decoded(code_update(assign, *parts, residuals), assign, change)
        if number == 3:  # asked for twice, as by a server that was killed
            again = code_update(assign, *parts, residuals)
            residuals.settle(number)  # it counted, and then it did not
            assert code_update(assign, *parts, residuals) == again
        residuals.settle(number)
        for kind, tensors in change.items():
            for name, value in tensors.items():
                before = due.get(kind, {}).get(name, np.float32(0))
                due.setdefault(kind, {})[name] = before + value - found[kind][name]
        kept = {kind: residuals.of(kind) for kind in ("backbone", "expert:1", "gate:3")}
        if codec == plain:
            assert not any(kept.values())
            largest = max(np.abs(value).max() for t in due.values() for value in t.values())
            assert largest < (1e-5 if plain == "raw" else 0.1)
            due.clear()  # int8 is right on average
        else:
            for name, value in due["backbone"].items():
                np.testing.assert_allclose(kept["backbone"][name], value, atol=1e-5)
                assert np.abs(value).max() > 0.1


def test_what_is_left_of_another_model_is_left_alone() -> None:
    residuals = Residuals()
    code_update(work(1, codec="topk(0.2)"), *trained(1), residuals)
    wide = make_toy_layout("train", width=7)
    models = [make_model(seed, wide) for seed in (1, 2)]
    parts = [ModelParts(m.backbone, m.gate, (m.experts[1], m.experts[3])) for m in models]
    assign = work(2, codec="topk(0.2)")
    update = code_update(assign, parts[0], parts[1], residuals)
    assert update == code_update(assign, parts[0], parts[1], Residuals())


# --- in a device's life ------------------------------------------------------------------------


def rounds(
    path: Path, numbers: list[int], aggregated: set[int], restarts: set[int] | None = None
) -> dict[int, bytes]:
    """The updates of these rounds, the last of each number; before `restarts` a device begins."""
    updates: dict[int, bytes] = {}
    lives: list[list[int]] = [[]]
    for number in numbers:
        if number in (restarts or set()) and lives[-1]:
            lives.append([])
        lives[-1].append(number)
    for life in lives:
        stage = Stage(residuals=Residuals(path))

        def script(stage: Stage = stage, life: list[int] = life) -> Script:
            yield from stage.join()
            for number in life:
                experts = ((0, 1), (1, 2), (0, 2))[number % 3]
                model = make_model(number, stage.layout)
                counted = max((n for n in aggregated if n < number and n in numbers), default=0)
                fields = {"codec": "topk(0.2)", "counted": counted}
                stage.say(stage.make_assign(model, experts, number, **fields))
                report = yield from stage.hear(Report)
                updates[number] = yield from stage.fetch(report.update)
                if number % 2:  # it says nothing of what counts, and may be lost
                    stage.say(Received("s", number, 1))
            stage.say(Stop("s", "done"))
            yield

        stage.play(script())
    return updates


ALL = {1, 2, 3, 4, 5}


def test_a_server_that_was_killed_gets_the_same_updates_again(tmp_path: Path) -> None:
    """It asks again for the last round, of this device or of one that was killed with it."""
    whole = rounds(tmp_path / "whole", [1, 2, 3, 4, 5], ALL)
    again = rounds(tmp_path / "again", [1, 2, 3, 3, 4, 5], ALL)
    assert again == whole
    restarted = rounds(tmp_path / "restarted", [1, 2, 3, 3, 4, 5], ALL, restarts={3})
    assert restarted == whole
    without = {number: rounds(tmp_path / f"{number}", [number], ALL)[number] for number in ALL}
    assert without[1] == whole[1] and all(without[n] != whole[n] for n in (2, 3, 4, 5))


def test_an_update_that_is_not_in_the_model_leaves_nothing(tmp_path: Path) -> None:
    late = rounds(tmp_path / "late", [1, 2, 3], {1, 3})
    never = rounds(tmp_path / "never", [1, 3], {1, 3})
    assert late[3] == never[3] != rounds(tmp_path / "whole", [1, 2, 3], ALL)[3]


def test_bytes_are_accounted_for_until_the_stop() -> None:
    """Reports and the last account add up to what the socket moved, but for that last message."""
    stage = Stage(chunk_bytes=4096, width=500)
    reports: list[Report] = []

    def script() -> Script:
        yield from stage.join()
        for number in (1, 2):
            model = make_model(number, stage.layout)
            stage.say(stage.make_assign(model, number=number))
            report = yield from stage.hear(Report)
            reports.append(report)
            yield from stage.collect(report)
        stage.say(Rollcall("s"))
        yield from stage.rest(1)
        stage.say(Stop("s", "done"))
        yield

    stage.play(script())
    stage.pump()
    last = stage.heard[-1]
    assert not any(isinstance(message, Gone) for message in stage.heard)
    accounts = [*(report.account for report in reports), last.account]  # type: ignore[union-attr]
    moved = [item for account in accounts for item in account]
    assert sum(item.down_wire_bytes for item in moved) <= stage.link.received_bytes
    ends = stage.link.sent_bytes - sum(item.up_wire_bytes for item in moved)
    assert 0 < ends < 400  # the last message itself
    kinds = {item.kind for item in moved}
    assert {"program", "backbone", "gate", "expert:1", "expert:3", "control"} <= kinds
    for kind in ("backbone", "gate", "expert:1"):
        item = next(item for item in accounts[0] if item.kind == kind)
        assert item.down_payload_bytes > 0
        sent = next(item for item in accounts[1] if item.kind == kind)
        assert sent.up_payload_bytes > 0  # the first update's chunks
    assert not [message for message in stage.heard if isinstance(message, Fetch)]
