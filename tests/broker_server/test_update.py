"""What a device answers: everything but a good answer is a `WireError` with the right reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.update import check_report, decode_update, update_kinds
from edge_runtime.errors import WireError
from edge_runtime.messages import MAX_BLOB_BYTES, Assign, BlobRef, Report
from edge_runtime.parts import GATE
from tests.broker_server.sample_model import (
    CODEC,
    SAMPLES,
    changes,
    encode,
    make_assign,
    make_report,
    random_model,
)

MODEL = random_model(0)
ASSIGN = make_assign([1, 3])
CHANGES = changes(1, MODEL, [1, 3])
BLOBS = encode(CHANGES)
REPORT = make_report(ASSIGN, BLOBS)
LOCAL = make_assign([1, 3], local_gate=True)
LOCAL_BLOBS = {kind: data for kind, data in BLOBS.items() if kind != "gate"}


def ref(kind: str, size_bytes: int = 100) -> BlobRef:
    return BlobRef(kind, bytes(16), size_bytes)


def report(**fields: Any) -> Report:
    return dataclasses.replace(REPORT, **fields)


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
    check_report(make_report(LOCAL, LOCAL_BLOBS), LOCAL, SAMPLES, MODEL)


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
    ("wrong-blobs", {"update": []}),
    ("wrong-blobs", {"update": [ref(kind) for kind in KINDS[:-1]]}),
    ("wrong-blobs", {"update": [ref(kind) for kind in [*KINDS, "expert:3"]]}),
    ("wrong-blobs", {"update": [ref(kind) for kind in reversed(KINDS)]}),
    ("wrong-blobs", {"update": [ref(kind) for kind in [*KINDS[:-1], "expert:2"]]}),
    ("wrong-blobs", {"update": [ref(kind) for kind in [*KINDS[:-1], "../../x"]]}),
    ("wrong-blobs", {"update": [ref(kind) for kind in KINDS if kind != "gate"]}),
    *[
        ("oversized", {"update": [ref(k, MAX_BLOB_BYTES if k == big else 100) for k in KINDS]})
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
    assert error.value.reason == "wrong-blobs"


def test_the_sizes_that_pass_are_near_those_of_the_model() -> None:
    """What a device can make the server hold is bounded before anything is fetched."""
    bytes_of_model = 4 * sum(
        value.size for part in (MODEL.backbone, MODEL.experts[0]) for value in part.values()
    )
    largest = bytes_of_model + MODEL.gate.nbytes + 64 * 1024
    for place in range(len(KINDS)):
        sizes = [largest + 1 if i == place else 100 for i in range(len(KINDS))]
        update = [ref(kind, size) for kind, size in zip(KINDS, sizes, strict=True)]
        with pytest.raises(WireError):
            check_report(report(update=update), ASSIGN, SAMPLES, MODEL)


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


def decode(blobs: dict[str, bytes], assign: Assign = ASSIGN) -> Any:
    return decode_update(blobs, REPORT, assign, SAMPLES, MODEL, CODEC)


def test_a_good_update_decodes() -> None:
    update = decode(BLOBS)
    assert (update.samples, update.experts, update.usage) == (SAMPLES, [1, 3], REPORT.usage)
    assert np.array_equal(update.gate, CHANGES["gate"][GATE])
    assert np.array_equal(update.backbone["0.weight"], CHANGES["backbone"]["0.weight"])
    for slot, kind in enumerate(("expert:1", "expert:3")):
        assert update.changes[slot].keys() == CHANGES[kind].keys()
        for name, value in CHANGES[kind].items():
            assert np.array_equal(update.changes[slot][name], value)


def test_a_local_gate_decodes_to_none() -> None:
    assert decode(LOCAL_BLOBS, LOCAL).gate is None


def swapped(kind: str, **tensors: Any) -> dict[str, bytes]:
    """The good blobs with other tensors in `kind`; None takes one away."""
    changed = {**CHANGES[kind], **{n.replace("__", "."): v for n, v in tensors.items()}}
    left = {name: value for name, value in changed.items() if value is not None}
    return {**BLOBS, kind: CODEC.encode(left)}


def filled(shape: tuple[int, ...], value: float, dtype: str = "f4") -> np.ndarray:
    array = np.zeros(shape, dtype)
    array.flat[-1] = value
    return array


BAD_UPDATES: list[tuple[str, dict[str, bytes]]] = [
    ("wrong-shape", swapped("backbone", **{"0__bias": np.zeros(7, np.float32)})),
    ("wrong-shape", swapped("backbone", **{"0__bias": np.zeros((6, 1), np.float32)})),
    ("wrong-shape", swapped("backbone", **{"0__weight": np.zeros((4, 6), np.float32)})),
    ("wrong-shape", swapped("expert:3", **{"0__bias": np.zeros(0, np.float32)})),
    ("wrong-shape", swapped("expert:1", **{"0__bias": np.zeros(3, np.float16)})),
    ("wrong-shape", swapped("expert:1", **{"0__bias": np.zeros(3, np.int32)})),
    ("wrong-shape", {**BLOBS, "gate": CODEC.encode({GATE: MODEL.gate})}),
    ("wrong-names", swapped("backbone", **{"0__bias": None})),
    ("wrong-names", swapped("expert:3", **{"0__weight": None})),
    ("wrong-names", swapped("expert:3", more=np.zeros(1, np.float32))),
    ("wrong-names", {**BLOBS, "gate": CODEC.encode({"gate": CHANGES["gate"][GATE]})}),
    ("wrong-shape", {**BLOBS, "expert:1": BLOBS["backbone"]}),
    ("wrong-names", {**BLOBS, "expert:3": BLOBS["gate"]}),
    *[
        ("not-finite", swapped(kind, **{name: filled(shape, value)}))
        for value in (np.nan, np.inf, -np.inf)
        for kind, name, shape in (
            ("backbone", "0__weight", (6, 4)),
            ("expert:3", "0__bias", (3,)),
            ("gate", "gate__weight", (2, 6)),
        )
    ],
    ("bad-tensors", {**BLOBS, "backbone": b"not a blob of tensors"}),
    ("bad-tensors", {**BLOBS, "gate": BLOBS["gate"][:-1]}),
    ("bad-tensors", {**BLOBS, "expert:3": BLOBS["expert:3"] + b"\0"}),
]


@pytest.mark.parametrize(("reason", "blobs"), BAD_UPDATES)
def test_a_bad_update_is_refused(reason: str, blobs: dict[str, bytes]) -> None:
    with pytest.raises(WireError) as error:
        decode(blobs)
    assert error.value.reason == reason


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.data())
def test_damaged_bytes_never_give_a_number_that_is_none(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(BLOBS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        update = decode({**BLOBS, kind: bytes(damaged)})
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
    blobs = {**BLOBS, "backbone": CODEC.encode(change)}
    with pytest.raises(WireError, match="overflows"):
        decode_update(blobs, REPORT, ASSIGN, SAMPLES, model, CODEC)
