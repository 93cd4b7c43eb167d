"""Rounds with scripted devices of which some have a budget of bytes."""

from __future__ import annotations

from pathlib import Path

from broker_server.budget import LADDER
from broker_server.publishing.holdings import frames_of
from broker_server.record import RoundRecord
from edge_runtime.protocol.messages import Assign
from tests.broker_server.scripted_fleet import Fleet, K, experiment


def carried_bytes(record: RoundRecord, name: str) -> float:
    """What the server's ledger says of a device: scripted ones keep no account of their own."""
    rows = [row for row in record.bytes if (row.side, row.client) == ("server", name)]
    return sum(row.wire_bytes for row in rows)


NARROW = {"links": "nb-iot", "bytes_per_round": {"b": 4000, "nb-iot": 60_000, "a": 0}}


def test_a_budget_chooses_k_and_codec_of_its_device_alone(tmp_path: Path) -> None:
    """b's is its own, c's that of its link's class, a's is none, and d has no link of a class."""
    fleet = Fleet(tmp_path, experiment(wire=NARROW))
    for name in "ac":
        fleet.say(name, link="nb-iot")
    fleet.run(6)
    plain = Fleet(tmp_path / "plain", experiment())
    plain.run(1)
    (usual,) = {client.codec for client in plain.records[0].clients}
    for record in fleet.records:
        clients = {client.client: client for client in record.clients}
        assert {name: c.budget_bytes for name, c in clients.items()} == {
            "a": 0, "b": 4000, "c": 60_000, "d": 0,
        }  # fmt: skip
        assert clients["a"].codec == clients["d"].codec == usual
        assert clients["b"].codec.startswith("topk(")
        assert len(clients["a"].experts) == len(clients["d"].experts) == K
        works = fleet.devices["b"].got(Assign)
        assert clients["b"].codec in {work.codec for work in works}  # type: ignore[union-attr]
    # The first round brings whole parts; then b keeps to what it holds.
    held = {tuple(r.clients[1].experts) for r in fleet.records}
    assert len(held) == 1 and len({tuple(r.clients[0].experts) for r in fleet.records}) > 1
    for record in fleet.records[1:]:
        frames = sum(
            ref.size_bytes
            for work in fleet.devices["b"].got(Assign)
            if isinstance(work, Assign) and work.round == record.round
            for ref in frames_of(work)
        )
        assert carried_bytes(record, "b") + frames <= 4000
        assert record.clients[2].codec == usual  # room enough, whatever it lacks


def test_a_budget_that_nothing_fits_takes_the_least_and_is_told_once(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment(wire={"bytes_per_round": {"c": 300}}))
    fleet.run(4)
    for record in fleet.records:
        client = record.clients[2]
        assert (client.codec, len(client.experts)) == (LADDER[-1], 1)
        assert client.status == "ok"
    told = [event for record in fleet.records for event in record.events if "the least" in event]
    assert len(told) == 1 and told[0].startswith("c: asked 300 bytes a round, the least is about ")


def test_a_budget_chooses_the_same_again(tmp_path: Path) -> None:
    """Another server with the same past, by the same holdings: the same experts and codecs."""
    first, second = (
        Fleet(tmp_path / name, experiment(wire={"bytes_per_round": 5000})) for name in "xy"
    )
    for fleet in (first, second):
        fleet.run(5)
    assert [
        [(client.experts, client.codec) for client in record.clients] for record in first.records
    ] == [
        [(client.experts, client.codec) for client in record.clients] for record in second.records
    ]
