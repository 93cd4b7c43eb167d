"""What a device answers: everything but a good answer is a `WireError` with the right reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.update import check_report, decode_update, update_kinds
from edge_runtime.codec import encode as encode_tensors
from edge_runtime.codec import parse_coding
from edge_runtime.errors import WireError
from edge_runtime.parts import GATE
from edge_runtime.protocol.messages import MAX_BLOB_BYTES, Assign, BlobRef, Report
from tests.broker_server.sample_model import (
    SAMPLES,
    changes,
    encode,
    encode_anything,
    make_assign,
    make_report,
    random_model,
)

MODEL = random_model(0)
ASSIGN = make_assign([1, 3])
CHANGES = changes(1, MODEL, [1, 3])
SECTIONS = encode(CHANGES)
REPORT = make_report(ASSIGN, SECTIONS)
LOCAL = make_assign([1, 3], local_gate=True)
LOCAL_SECTIONS = {kind: data for kind, data in SECTIONS.items() if kind != "gate"}


def report(**fields: Any) -> Report:
    return dataclasses.replace(REPORT, **fields)


def of_sizes(*sections: int, update: int | None = None) -> dict[str, Any]:
    """The fields of a report with such sections, and an update of their size or another."""
    size_bytes = sum(sections) if update is None else update
    return {"update": BlobRef(bytes(16), size_bytes), "sections": list(sections)}


def test_the_kinds_of_an_update_follow_the_assignment() -> None:
    assert update_kinds(ASSIGN) == ["backbone", "gate", "expert:1", "expert:3"]
    assert update_kinds(LOCAL) == ["backbone", "expert:1", "expert:3"]


@pytest.mark.parametrize(
    "good",
    [
        REPORT,
        report(usage=[0, 10], hits=[0, 10]),
        report(usage=[10, 0], hits=[10, 0]),
        report(test_hits=0, test_samples=0),
        report(test_hits=2, test_samples=2),
        report(telemetry={}),
    ],
)
def test_good_reports_pass(good: Report) -> None:
    check_report(good, ASSIGN, SAMPLES, MODEL)


def test_a_report_without_the_gate_answers_work_with_a_local_gate() -> None:
    check_report(make_report(LOCAL, LOCAL_SECTIONS), LOCAL, SAMPLES, MODEL)


KINDS = update_kinds(ASSIGN)
BAD_REPORTS: list[tuple[str, dict[str, Any]]] = [
    ("wrong-experts", {"experts": [1, 2]}),
    ("wrong-experts", {"experts": [3, 1]}),
    ("wrong-experts", {"experts": [1]}),
    ("wrong-experts", {"experts": []}),
    ("wrong-experts", {"experts": [1, 3, 3]}),
    ("wrong-experts", {"experts": [1, -1]}),
    ("wrong-count", {"usage": [10]}),
    ("wrong-count", {"usage": [8, 1, 1]}),
    ("wrong-count", {"loss": [0.5]}),
    ("wrong-count", {"loss": []}),
    ("wrong-count", {"hits": [0, 0, 0]}),
    ("wrong-count", {"usage": [], "loss": [], "hits": []}),
    ("wrong-count", {"usage": [9, 2]}),
    ("wrong-count", {"usage": [0, 0]}),
    ("wrong-count", {"usage": [11, -1]}),
    ("wrong-count", {"usage": [2**62, -(2**62) + 10]}),
    ("wrong-count", {"hits": [10, 0]}),
    ("wrong-count", {"hits": [0, -1]}),
    ("wrong-count", {"test_hits": 3}),
    ("wrong-count", {"test_hits": -1}),
    ("wrong-count", {"test_hits": 0, "test_samples": -1}),
    ("wrong-sections", {"sections": []}),
    ("wrong-sections", of_sizes(100, 100, 100)),
    ("wrong-sections", of_sizes(100, 100, 100, 100, 100)),
    ("wrong-sections", of_sizes(100, 100, 100, 0)),
    ("wrong-sections", of_sizes(100, 100, 200, -100)),
    ("wrong-sections", of_sizes(100, 100, 100, 100, update=399)),
    ("wrong-sections", of_sizes(100, 100, 100, 100, update=401)),
    *[
        ("wrong-sections", of_sizes(*(MAX_BLOB_BYTES // 2 if k == big else 100 for k in KINDS)))
        for big in KINDS
    ],
]


@pytest.mark.parametrize(("reason", "fields"), BAD_REPORTS)
def test_a_bad_report_is_refused(reason: str, fields: dict[str, Any]) -> None:
    with pytest.raises(WireError) as error:
        check_report(report(**fields), ASSIGN, SAMPLES, MODEL)
    assert error.value.reason == reason


def test_a_gate_is_refused_where_it_must_stay_on_the_device() -> None:
    with pytest.raises(WireError) as error:
        check_report(REPORT, LOCAL, SAMPLES, MODEL)
    assert error.value.reason == "wrong-sections"


def test_the_sizes_that_pass_are_near_those_of_the_model() -> None:
    """What a device can make the server hold is bounded before anything is fetched."""
    for place, kind in enumerate(KINDS):
        raw_bytes = sum(value.nbytes for value in CHANGES[kind].values())
        for size_bytes, passes in (
            (raw_bytes + 64 * 1024, True),
            (raw_bytes + 64 * 1024 + 1, False),
        ):
            sizes = [size_bytes if i == place else 100 for i in range(len(KINDS))]
            try:
                check_report(report(**of_sizes(*sizes)), ASSIGN, SAMPLES, MODEL)
                assert passes
            except WireError:
                assert not passes


SMALL = st.lists(st.integers(-3, 12), max_size=3)


@settings(max_examples=60)
@given(SMALL, SMALL, st.lists(st.floats(0, 9), max_size=3), st.integers(-2, 5), st.integers(-2, 5))
def test_what_passes_keeps_every_rule(
    usage: list[int], hits: list[int], loss: list[float], test_hits: int, test_samples: int
) -> None:
    sent = report(usage=usage, hits=hits, loss=loss, test_hits=test_hits, test_samples=test_samples)
    try:
        check_report(sent, ASSIGN, SAMPLES, MODEL)
        passed = True
    except WireError:
        passed = False
    assert passed == (
        len(usage) == len(hits) == len(loss) == 2
        and sum(usage) == SAMPLES
        and all(0 <= hit <= used for hit, used in zip(hits, usage, strict=True))
        and 0 <= test_hits <= test_samples
    )


def decode(sections: dict[str, bytes], assign: Assign = ASSIGN) -> Any:
    data = b"".join(sections.values())
    return decode_update(data, make_report(assign, sections), assign, SAMPLES, MODEL)


def test_a_good_update_decodes() -> None:
    update = decode(SECTIONS)
    assert (update.samples, update.experts, update.usage) == (SAMPLES, [1, 3], REPORT.usage)
    assert np.array_equal(update.gate, CHANGES["gate"][GATE])
    assert np.array_equal(update.backbone["0.weight"], CHANGES["backbone"]["0.weight"])
    for slot, kind in enumerate(("expert:1", "expert:3")):
        assert update.changes[slot].keys() == CHANGES[kind].keys()
        for name, value in CHANGES[kind].items():
            assert np.array_equal(update.changes[slot][name], value)


@pytest.mark.parametrize("spec", ["raw+zlib", "fp16", "int8+zip", "int4", "topk(0.5)"])
def test_an_update_decodes_whatever_it_is_coded_with(spec: str) -> None:
    update = decode(encode(CHANGES, spec))
    for slot, kind in enumerate(("expert:1", "expert:3")):
        for name, value in CHANGES[kind].items():
            lost = update.changes[slot][name] - value
            assert np.abs(lost).max() <= np.abs(value).max()
            assert np.linalg.norm(lost) < 0.9 * np.linalg.norm(value)


def test_a_local_gate_decodes_to_none() -> None:
    assert decode(LOCAL_SECTIONS, LOCAL).gate is None


def spoilt(kind: str, name: str, value: float) -> dict[str, bytes]:
    """The good sections with another last value in one tensor."""
    tensors = {**CHANGES[kind], name: CHANGES[kind][name].copy()}
    tensors[name].flat[-1] = value
    return {**SECTIONS, kind: encode_anything(tensors)}


def described(kind: str, **tensors: Any) -> dict[str, bytes]:
    """The good sections with other tensors in `kind`, described; None takes one away."""
    changed = {**CHANGES[kind], **{n.replace("__", "."): v for n, v in tensors.items()}}
    left = {name: value for name, value in changed.items() if value is not None}
    rng = np.random.default_rng(0)
    return {**SECTIONS, kind: encode_tensors(left, parse_coding("raw"), rng, described=True)}


BAD_UPDATES: list[tuple[str, dict[str, bytes]]] = [
    ("bad-blob", described("backbone", **{"0__bias": np.zeros(7, np.float32)})),
    ("bad-blob", described("backbone", **{"0__weight": np.zeros((4, 6), np.float32)})),
    ("bad-blob", described("backbone", **{"0__bias": None})),
    ("bad-blob", described("expert:3", more=np.zeros(1, np.float32))),
    ("bad-body", {**SECTIONS, "gate": encode({"gate": {GATE: MODEL.gate}})["gate"]}),
    ("bad-body", {**SECTIONS, "expert:1": SECTIONS["backbone"]}),
    *[
        ("not-finite", spoilt(kind, name, value))
        for value in (np.nan, np.inf, -np.inf)
        for kind, name in (("backbone", "0.weight"), ("expert:3", "0.bias"), ("gate", GATE))
    ],
    ("bad-blob", {**SECTIONS, "backbone": b"not a coded blob"}),
    ("unknown-codec", {**SECTIONS, "backbone": b"\x10\xff" + SECTIONS["backbone"][2:]}),
    ("unknown-codec", {**SECTIONS, "backbone": b"\x10\x00\x04best" + SECTIONS["backbone"][2:]}),
    ("bad-body", {**SECTIONS, "gate": SECTIONS["gate"][:-1]}),
    ("bad-body", {**SECTIONS, "expert:3": SECTIONS["expert:3"] + b"\0"}),
]


@pytest.mark.parametrize(("reason", "sections"), BAD_UPDATES)
def test_a_bad_update_is_refused(reason: str, sections: dict[str, bytes]) -> None:
    with pytest.raises(WireError) as error:
        decode(sections)
    assert error.value.reason == reason
    bad = next(kind for kind in KINDS if sections[kind] != SECTIONS[kind])
    assert f": {bad}: " in str(error.value)


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.data())
def test_damaged_bytes_never_give_a_number_that_is_none(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(SECTIONS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        update = decode({**SECTIONS, kind: bytes(damaged)})
    except WireError:
        return
    assert np.isfinite(update.gate).all() and update.gate.shape == (2, 6)
    for tensors in (update.backbone, *update.changes):
        assert all(np.isfinite(v).all() and v.dtype == np.float32 for v in tensors.values())


def test_a_change_that_would_overflow_the_model_is_refused() -> None:
    largest = np.finfo(np.float32).max
    model = dataclasses.replace(
        MODEL, backbone={name: np.full_like(v, largest) for name, v in MODEL.backbone.items()}
    )
    change = {name: np.full_like(value, largest / 2) for name, value in MODEL.backbone.items()}
    sections = {**SECTIONS, "backbone": encode({"backbone": change})["backbone"]}
    data, sent = b"".join(sections.values()), make_report(ASSIGN, sections)
    with pytest.raises(WireError, match=r"backbone: '0\.bias' overflows"):
        decode_update(data, sent, ASSIGN, SAMPLES, model)
