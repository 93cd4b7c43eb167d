"""Budgets: what is allowed, against the packets themselves, and what fits is never too much."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.budget import LADDER, Allowance, Budgets
from broker_server.experiment import Experiment
from broker_server.publishing.publication import Publication
from broker_server.roster import Member
from broker_server.round_cost import RoundCost, UpdateSizes
from edge_runtime.codec import encode, known_codecs, parse_coding
from edge_runtime.parts import GATE
from edge_runtime.protocol.message_parts import BlobRef
from edge_runtime.protocol.topics import blob_topic
from edge_runtime.tensor_blob import Tensors
from edge_runtime.transport.packet import PUBACK_BYTES, publish_packet_bytes
from tests.broker_server.sample_model import random_model
from tests.broker_server.scripted_device import HELLO

EXPERTS = 6
MODEL = random_model(0, EXPERTS, big=60)
CODECS = known_codecs()


def member(name: str = "a", **hello: Any) -> Member:
    return Member(name, dataclasses.replace(HELLO, **hello))


def budgets(asked: Any, **sections: dict[str, Any]) -> Budgets:
    """Of an experiment whose model was just published."""
    base: dict[str, Any] = {"model": {"experts": EXPERTS}, **sections}
    base["wire"] = {"bytes_per_round": asked, **base.get("wire", {})}
    experiment = Experiment.model_validate(base)
    publication = Publication(experiment.wire.codings, 0, 0)
    publication.begin(MODEL, CODECS)
    return Budgets(experiment, publication)


def allowance(asked: int, **fields: Any) -> Allowance:
    found = budgets(asked, **fields).allowance(member(), [])
    assert found is not None
    return found


# --- what a round takes --------------------------------------------------------------------------


@given(st.integers(1, 3_000_000), st.sampled_from(["f", "federation-of-sixty-four"]))
def test_a_frame_costs_its_packets(size_bytes: int, federation: str) -> None:
    """SUBSCRIBE, SUBACK, the chunk, PUBACK, UNSUBSCRIBE, UNSUBACK (MQTT 3.1.1), for each chunk."""
    packets, chunk_bytes = 0, 65_536
    for index in range(math.ceil(size_bytes / chunk_bytes)):
        topic = blob_topic(federation, bytes(16), index)
        part = min(chunk_bytes, size_bytes - index * chunk_bytes)
        packets += (2 + 2 + 2 + len(topic) + 1) + 5 + (2 + 2 + 2 + len(topic)) + 4
        packets += publish_packet_bytes(topic, part) + PUBACK_BYTES
    counted = RoundCost(federation, "a", chunk_bytes).frame_bytes(size_bytes)
    named = 22  # in Assign: a digest and a size
    assert packets <= counted <= packets + named + 7 * math.ceil(size_bytes / chunk_bytes)


@pytest.mark.parametrize("spec", ["raw+zip", "fp16", *LADDER])
@pytest.mark.parametrize("local", [False, True])
def test_an_update_is_hardly_ever_longer_than_foretold(spec: str, local: bool) -> None:
    coding, k = parse_coding(spec), 2
    parts: list[Tensors] = [MODEL.backbone, *MODEL.experts[:k]]
    parts += [] if local else [{GATE: MODEL.gate[:k]}]
    rng = np.random.default_rng(0)
    coded = sum(len(encode(part, coding, rng)) for part in parts)
    foretold = UpdateSizes(MODEL, local).bytes(coding, k)
    assert coded <= foretold <= 1.5 * coded + 100


# --- who has a budget, and what it allows --------------------------------------------------------


def test_without_a_budget_nothing_is_reckoned() -> None:
    found = budgets({"wifi": 5000})
    assert found.allowance(member(), []) is None
    assert found.coding(member(), 2, []) == budgets(0).coding(member(), 2, [])
    assert found.asked(member(link="wifi")) == 5000


def test_k_is_what_fits_and_grows_with_the_budget() -> None:
    wide = allowance(1 << 40)
    assert wide.capacity(EXPERTS) is None and not wide.objection
    ks = []
    for asked in range(100, wide.round_bytes(EXPERTS) + 200, 50):
        tight = allowance(asked)
        assert tight.round_bytes(1) == wide.round_bytes(1)
        held = tight.capacity(EXPERTS)
        ks.append(EXPERTS if held is None else held.k)
        assert ks[-1] == 1 or tight.round_bytes(ks[-1]) <= asked
        assert ks[-1] == EXPERTS or tight.round_bytes(ks[-1] + 1) > asked
        assert held is None or held.limit == "link"
        assert bool(tight.objection) == (asked < tight.least_bytes)
    assert ks == sorted(ks) and set(ks) == set(range(1, EXPERTS + 1))


def test_what_a_device_holds_costs_it_nothing() -> None:
    """And what it lacks costs it a whole frame now, but one step in the long run."""
    found = budgets(3000)
    parts = {kind: found._publication.artifact(kind, [], CODECS) for kind in ("expert:1", "gate")}
    before = found.allowance(member(), [])
    after = found.allowance(member(), [artifact.digest for artifact in parts.values()])
    assert before is not None and after is not None
    cost = RoundCost("default", "a")
    whole = cost.frames_bytes(parts["expert:1"].frames)
    assert before.each_bytes[1] - after.each_bytes[1] == whole
    assert [before.each_bytes[e] == after.each_bytes[e] for e in (0, 1, 2)] == [True, False, True]
    assert before.likely_bytes[0] < before.each_bytes[0]
    assert before.shared_bytes > after.shared_bytes
    dear = after.dear(1)
    assert not dear[1] and dear.sum() == EXPERTS - 1
    assert not before.dear(1).any()  # all alike: the budget has no favourite


@pytest.mark.parametrize("policy", ["random", "rolling", "full"])
def test_a_policy_that_does_not_look_at_quality_pays_the_mean(policy: str) -> None:
    found = budgets(5000, assignment={"policy": policy})
    expert = found._publication.artifact("expert:1", [], CODECS).digest
    tight = found.allowance(member(), [expert])
    assert tight is not None
    assert len(set(tight.each_bytes)) == len(set(tight.likely_bytes)) == 1
    assert not tight.dear(1).any()


def test_a_budget_below_the_least_is_told_in_round_figures() -> None:
    tight = Allowance(2000, 5301, 4000, [1300] * 2, [1300] * 2)
    assert tight.objection == "asked 2,000 bytes a round, the least is about 5,400"
    everything = allowance(100, assignment={"policy": "full"})
    one = allowance(100)
    assert everything.least_bytes > one.least_bytes + (EXPERTS - 1) * min(one.likely_bytes) / 2


# --- the codec -----------------------------------------------------------------------------------


def total_bytes(spec: str, k: int, frames: list[BlobRef]) -> int:
    """What a round takes with an update coded so."""
    cost, up = RoundCost("default", "a"), UpdateSizes(MODEL, local_gate=False)
    return cost.messages_bytes(k) + cost.frames_bytes(frames) + up.bytes(parse_coding(spec), k)


def refs(sizes: list[int]) -> list[BlobRef]:
    return [BlobRef(bytes([i]) * 16, size) for i, size in enumerate(sizes)]


@given(
    st.integers(1000, 60_000),
    st.integers(1, EXPERTS),
    st.lists(st.integers(1, 8000), max_size=6).map(refs),
)
def test_never_more_than_asked_where_the_least_fits(
    asked: int, k: int, frames: list[BlobRef]
) -> None:
    specs = ["raw", *(spec.removesuffix("+zip") for spec in LADDER)]
    chosen = budgets(asked, wire={"uplink": "raw+zip"}).coding(member(), k, frames)
    chosen = chosen.partition("+")[0]
    fitting = [spec for spec in specs if total_bytes(spec, k, frames) <= asked]
    assert chosen == (fitting[0] if fitting else specs[-1])
    # The widest that fits: with less to carry it is never narrower.
    less = budgets(asked, wire={"uplink": "raw+zip"}).coding(member(), k, frames[:-1])
    assert specs.index(less.partition("+")[0]) <= specs.index(chosen)


def test_the_ladder_begins_with_the_configured_codec() -> None:
    for uplink, narrower in (("topk(0.1,4)", LADDER[4:]), ("topk(0.001,4)", ()), ("fp16", LADDER)):
        found = budgets(5000, wire={"uplink": uplink})
        ladder = [coding.spec for coding in found._ladder(member())]
        assert ladder == [uplink, *narrower]
    assert budgets(1, wire={"uplink": "topk(0.001,4)"}).coding(member(), 1, []) == "topk(0.001,4)"


def test_only_what_a_device_knows_is_asked_of_it() -> None:
    found = budgets(1, wire={"uplink": "fp16"})
    assert found.coding(member(codecs=["raw", "fp16"]), 1, []) == "fp16"
    assert found.coding(member(codecs=["raw", "fp16", "int8", "zlib"]), 1, []) == "int8+zlib"
    assert found.coding(member(codecs=["raw", "fp16", "topk"]), 1, []) == LADDER[-1]


def test_the_last_round_leaves_room_for_the_end() -> None:
    ends = [
        asked
        for asked in range(1000, 20_000, 100)
        if budgets(asked).coding(member(), 2, []) != budgets(asked).coding(
            member(), 2, [], last=True
        )
    ]  # fmt: skip
    assert ends
    assert all(
        total_bytes(budgets(asked).coding(member(), 2, [], last=True), 2, []) + 300 <= asked
        for asked in ends
        if asked > 3000
    )


def test_a_budget_needs_a_model() -> None:
    experiment = Experiment.model_validate({"wire": {"bytes_per_round": 5000}})
    found = Budgets(experiment, Publication(experiment.wire.codings, 0, 0))
    with pytest.raises(RuntimeError, match="published"):
        found.allowance(member(), [])


def test_a_model_without_a_gate_on_the_wire_costs_less() -> None:
    shared, local = allowance(5000), allowance(5000, gate={"mode": "local"})
    assert min(shared.each_bytes) > min(local.each_bytes)
