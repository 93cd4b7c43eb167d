"""A server at work in a hail of bad messages: it comes to the same model, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from broker_server.state import State
from edge_runtime.protocol.ledger import total_wire_bytes
from edge_runtime.protocol.mailbox import MAX_CLIENTS
from edge_runtime.protocol.messages import MIN_CHUNK_BYTES
from edge_runtime.tensor_blob import pack_tensors
from tests.broker_server.hostile import STRANGERS, Liar, Refuser, Shouter, Shuffler
from tests.broker_server.scripted_device import Device
from tests.broker_server.scripted_fleet import SIZES, Fleet, experiment

ROUNDS = 7
MESSAGES = 100_000


class Played(NamedTuple):
    """A fleet after its rounds, what was shouted meanwhile, and what came of it."""

    fleet: Fleet
    shouter: Shouter
    state: State


def run(folder: Path, honest: type[Device], other: type[Device], messages: int) -> Played:
    fleet = Fleet(folder, experiment(wire={"uplink": "raw"}), MIN_CHUNK_BYTES)
    for name in SIZES:
        fleet.add(name, honest(fleet.world, name, fleet.start.model, seed=ord(name), delay_s=4.0))
    fleet.add("mallory", other(fleet.world, "mallory", fleet.start.model))
    shouter = Shouter(fleet, messages)
    state = fleet.run(ROUNDS)
    fleet.exchange.stop("over")
    return Played(fleet, shouter, state)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Played, Played]:
    """The same rounds, quiet and disturbed."""
    quiet = run(tmp_path_factory.mktemp("quiet"), Device, Refuser, 0)
    return quiet, run(tmp_path_factory.mktemp("loud"), Shuffler, Liar, MESSAGES)


def to_bytes(state: State) -> bytes:
    model = state.model
    parts = [model.backbone, {"gate": model.gate}, *model.experts]
    return b"".join(pack_tensors(part) for part in parts)


def test_the_model_is_the_same_to_the_bit(runs: tuple[Played, Played]) -> None:
    quiet, loud = runs
    assert to_bytes(quiet.state) == to_bytes(loud.state)
    for one, other in zip(quiet.fleet.records, loud.fleet.records, strict=True):
        assert (one.answered, one.load, one.usage) == (other.answered, other.load, other.usage)
        assert [(c.client, c.experts) for c in one.clients] == [
            (c.client, c.experts) for c in other.clients
        ]


def test_only_the_liar_is_left_out(runs: tuple[Played, Played]) -> None:
    _, loud = runs
    for record in loud.fleet.records:
        left_out = {client.client for client in record.clients if client.status != "ok"}
        assert left_out == {"mallory"}
    reasons = [c.detail for r in loud.fleet.records for c in r.clients if c.client == "mallory"]
    assert len(set(reasons)) == ROUNDS  # each lie was seen for what it is


def test_every_bad_message_is_counted(runs: tuple[Played, Played]) -> None:
    _, loud = runs
    shouter = loud.shouter
    assert shouter.sent >= MESSAGES / 2
    drops = loud.fleet.mailbox.drops
    for client in STRANGERS:
        assert sum(n for (who, _), n in drops.items() if who == client) == shouter.expected[client]
    for client in SIZES:  # besides, their own chunks came twice
        dropped = sum(n for (who, _), n in drops.items() if who == client)
        assert dropped >= shouter.expected[client] > 1000
    reasons = {reason for _, reason in drops}
    assert {"malformed", "version", "direction", "stale", "unexpected-blob", "unknown-client",
            "bad-chunk", "duplicate-chunk", "bad-digest", "bad-account", "not-finite",
            "oversized", "wrong-sections"} <= reasons  # fmt: skip
    assert len(drops) < MAX_CLIENTS


def test_strangers_are_on_nobodys_account(runs: tuple[Played, Played]) -> None:
    quiet, loud = runs
    clients = [{row.client for row in played.fleet.mailbox.ledger.rows()} for played in runs]
    assert clients[1] - clients[0] == {"(unknown)"}
    assert loud.fleet.federation.roster.present == quiet.fleet.federation.roster.present
    sizes = [total_wire_bytes(played.fleet.mailbox.ledger.rows(), "up") for played in runs]
    assert sizes[1] > 2 * sizes[0]
