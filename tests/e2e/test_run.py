"""`flexmoe run` from end to end: a real broker, four device processes, three rounds of digits.

What the report says is computed again here from the store's finer tables, and the bytes from what
the MQTT standard says of packets.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from device_profiles import datasets
from model_export.checkpoint import load_model
from tests.e2e.conftest import QuietRun
from tests.e2e.processes import Run

DEVICES, EXPERTS, K, ROUNDS = 4, 8, 2, 3
ROUND_KEYS = [
    "round",
    "global_accuracy",
    "device_accuracy",
    "loss",
    "uplink_bytes",
    "downlink_bytes",
    "load_cv",
    "usage_cv",
    "assign_s",
    "train_s",
    "round_s",
]
NAMES = [f"device-{i:02d}" for i in range(DEVICES)]
TRANSFERS = "(kind IN ('program', 'backbone', 'gate') OR kind LIKE 'expert:%')"


@pytest.fixture
def run(broker_kind: str, quiet_run: QuietRun) -> Run:
    """The finished run on each kind of broker."""
    return quiet_run(broker_kind)


def test_ends_well_and_leaves_what_it_promises(run: Run, broker_kind: str) -> None:
    assert (run.end.code, run.end.err) == (0, "")
    assert run.left == []
    names = {path.name for path in run.directory.iterdir()}
    assert {"run.sqlite", "report.json", "config.toml", "model"} <= names
    lines = run.end.out.splitlines()
    assert f"broker {broker_kind}" in lines[0]
    of_rounds = [line.split() for line in lines if f"{DEVICES}/{DEVICES}" in line.split()]
    assert [words[0] for words in of_rounds] == ["1", "2", "3"]
    assert lines[-1] == f"Everything is in {run.directory}"


def test_the_report_has_the_promised_keys_for_each_round(run: Run) -> None:
    rounds = run.report["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2, 3]
    for entry in rounds:
        assert [key for key in entry if key in ROUND_KEYS] == ROUND_KEYS
        for key in ROUND_KEYS[1:4]:
            assert 0 < entry[key] < (np.log(10) * 2 if key == "loss" else 1)
        assert 0 < entry["assign_s"] < entry["round_s"]
        assert 0 < entry["train_s"] < entry["round_s"]
        assert 0 <= entry["gap"] <= 1
        assert 0 <= entry["least_violation"] <= entry["violated_samples"] + 0.5  # it is rounded
        assert entry["participants"] == entry["answered"] == DEVICES
        assert entry["left_out"] == {}
    assert run.report["rounds_planned"] == run.report["final"]["rounds"] == ROUNDS
    for key in ("global_accuracy", "device_accuracy", "loss", "load_cv", "usage_cv"):
        assert run.report["final"][key] == rounds[-1][key]


def test_it_learns(run: Run) -> None:
    # A tenth is chance.
    assert run.report["final"]["global_accuracy"] > 0.4
    losses = [entry["loss"] for entry in run.report["rounds"]]
    assert losses == sorted(losses, reverse=True)


def test_load_usage_loss_and_accuracy_follow_from_the_devices_answers(run: Run) -> None:
    load, routed = np.zeros((2, EXPERTS))
    for entry in run.report["rounds"]:
        of_round = f"WHERE round = {entry['round']}"
        samples = dict(run.select(f"SELECT client, samples FROM clients {of_round}"))
        usage = np.zeros(EXPERTS)
        loss_sum = 0.0
        for client, expert, used, loss in run.select(
            f"SELECT client, expert, usage, loss FROM assignments {of_round}"
        ):
            load[expert] += samples[client]
            routed[expert] += K * used
            usage[expert] += used
            loss_sum += used * loss
        assert usage.sum() == sum(samples.values())  # each sample goes to one expert
        assert entry["load"] == load.tolist()
        assert entry["usage"] == usage.tolist()
        assert entry["load_cv"] == pytest.approx(load.std() / load.mean())
        assert entry["usage_cv"] == pytest.approx(usage.std() / usage.mean())
        assert entry["routed_cv"] == pytest.approx(routed.std() / routed.mean())
        assert entry["loss"] == pytest.approx(loss_sum / usage.sum(), rel=1e-5)
        own = run.select(f"SELECT device_accuracy FROM clients {of_round}")
        assert entry["device_accuracy"] == pytest.approx(np.mean(own))
        (slowest,) = run.select(f"SELECT max(value) FROM telemetry {of_round} AND key = 'train_s'")
        assert entry["train_s"] == slowest[0]


def test_the_store_says_what_the_report_says(run: Run) -> None:
    columns = ", ".join(ROUND_KEYS)
    stored = run.select(f"SELECT {columns} FROM rounds ORDER BY round")
    assert stored == [tuple(e[key] for key in ROUND_KEYS) for e in run.report["rounds"]]
    for entry in run.report["rounds"]:
        of_round = f"WHERE round = {entry['round']}"
        assigned: dict[str, list[int]] = defaultdict(list)
        for client, expert in run.select(
            f"SELECT client, expert FROM assignments {of_round} ORDER BY client, expert"
        ):
            assigned[client].append(expert)
        assert assigned == entry["assignments"]
        assert {client: len(experts) for client, experts in assigned.items()} == dict.fromkeys(
            NAMES, K
        )
        experts = run.select(f"SELECT load, usage FROM experts {of_round} ORDER BY expert")
        assert experts == list(zip(entry["load"], entry["usage"], strict=True))
        statuses = run.select(f"SELECT client, status FROM clients {of_round} ORDER BY client")
        assert statuses == [(name, "ok") for name in NAMES]


def test_telemetry_is_there_for_every_device_and_round(run: Run) -> None:
    keys = ("cpu_s", "cpu_share", "rss_mib", "peak_rss_mib", "fetch_s", "train_s", "usable_cores")
    for key in keys:
        values = run.select(f"SELECT value FROM telemetry WHERE key = '{key}'")
        assert len(values) == DEVICES * ROUNDS, key
        assert all(value >= 0 for (value,) in values), key
    assert all(rss > 20 for (rss,) in run.select("SELECT value FROM telemetry WHERE key='rss_mib'"))


# --- bytes -------------------------------------------------------------------------------------


def ledger(run: Run, what: str, where: str) -> int:
    return int(run.select(f"SELECT coalesce(sum({what}), 0) FROM bytes WHERE {where}")[0][0])


def test_the_ledgers_rows_are_the_rounds_bytes(run: Run) -> None:
    for entry in run.report["rounds"]:
        for direction, key in (("up", "uplink_bytes"), ("down", "downlink_bytes")):
            where = f"round = {entry['round']} AND direction = '{direction}'"
            assert ledger(run, "wire_bytes", where) == entry[key]
    by_client = run.report["final"]["bytes_by_client"]
    # "" is everybody's: roll calls, the connection.
    assert set(by_client) == {"", *NAMES}
    for client, sums in by_client.items():
        mine = f"client = '{client}'"
        assert sums["uplink_bytes"] == ledger(run, "wire_bytes", f"{mine} AND direction = 'up'")
        assert sums["payload_bytes"] == ledger(run, "payload_bytes", mine)


def test_the_ledger_agrees_with_the_servers_socket(run: Run) -> None:
    """Socket and ledger are counted apart, and the last cut comes while packets are on their way.

    The server has just told every device `Received`: those messages (about 70 bytes each), or the
    four bytes of their acknowledgement, may be booked and not be in the socket's count yet.
    """
    on_its_way = DEVICES * 128
    final = run.report["final"]
    assert 0 <= final["downlink_bytes"] - final["socket_sent_bytes"] <= on_its_way
    assert 0 <= final["uplink_bytes"] - final["socket_received_bytes"] <= on_its_way


def test_what_the_ledger_does_not_book_is_the_connection_itself(run: Run) -> None:
    """CONNECT and SUBSCRIBE down, CONNACK and SUBACK up (MQTT 3.1.1, sections 3.1 to 3.9).

    Whatever the server should have booked and did not, would show here.
    """
    connect = 2 + 10 + 2 + len("flexmoe-default-server")
    subscribe = 2 + 2 + 2 + len("flexmoe/1/default/up/+") + 1
    of_connection = "kind = 'connection' AND direction ="
    down = ledger(run, "wire_bytes", f"{of_connection} 'down'") - connect - subscribe
    up = ledger(run, "wire_bytes", f"{of_connection} 'up'") - 4 - 5
    # The rest are pings of two bytes, one in 30 silent seconds.
    assert down == up
    assert down in range(0, 12, 2)


def test_each_devices_own_socket_agrees_with_the_servers_books(run: Run) -> None:
    """A device reads its counters just before it sends its last report.

    Of the last round it has then received everything but its acknowledgements, and sent everything
    but the update's blobs and the report. What only the device knows is its own connection: CONNECT
    with a last will, two SUBSCRIBEs, their answers, roll calls, pings: less than 512 bytes.
    """
    connection = 512
    last = f"round = {ROUNDS}"
    for name in NAMES:
        mine = f"client = '{name}'"
        up, down = f"{mine} AND direction = 'up'", f"{mine} AND direction = 'down'"
        of_device = f"FROM telemetry WHERE {last} AND {mine} AND key ="
        ((sent,),) = run.select(f"SELECT value {of_device} 'socket_sent_bytes'")
        ((received,),) = run.select(f"SELECT value {of_device} 'socket_received_bytes'")

        before = ledger(run, "wire_bytes", f"{up} AND NOT {last}")
        update = ledger(run, "payload_bytes", f"{up} AND {last} AND {TRANSFERS}")
        whole = ledger(run, "wire_bytes", up)
        assert before < sent <= whole - update + connection
        # The bounds are near: what they leave open are messages, not blobs.
        assert whole - update - before < 8_000 < update

        fetched = ledger(run, "payload_bytes", f"{down} AND {last} AND {TRANSFERS}")
        before = ledger(run, "wire_bytes", f"{down} AND NOT {last}")
        whole = ledger(run, "wire_bytes", down)
        assert before + fetched < received <= whole + connection
        assert whole - fetched - before < 8_000 < fetched


def test_a_device_fetches_its_programs_once(run: Run) -> None:
    programs = [path.stat().st_size for path in cached_programs(run)]
    assert len(programs) == 2  # training and evaluation
    for name in NAMES:
        mine = f"client = '{name}' AND kind = 'program'"
        (row,) = run.select(
            f"SELECT sum(payload_bytes), sum(messages) FROM bytes WHERE round = 1 AND {mine}"
        )
        assert sum(programs) < row[0] < sum(programs) + 2 * 256
        assert row[1] == 2
        assert run.select(f"SELECT * FROM bytes WHERE round > 1 AND {mine}") == []


def test_bytes_of_experts_are_booked_under_the_experts_that_were_assigned(run: Run) -> None:
    for entry in run.report["rounds"]:
        for direction in ("up", "down"):
            rows = run.select(
                f"SELECT client, kind FROM bytes WHERE round = {entry['round']} AND messages > 0 "
                f"AND direction = '{direction}' AND kind LIKE 'expert:%'"
            )
            assigned = {(c, f"expert:{e}") for c, es in entry["assignments"].items() for e in es}
            if direction == "up":
                assert set(rows) == assigned
            else:  # an expert that is still on the device's shelf is not sent again
                assert set(rows) <= assigned


# --- programs and the model --------------------------------------------------------------------


def cached_programs(run: Run) -> list[Path]:
    cache = run.cache_folder
    return [cache / name for name in run.cache_after if name.endswith(".pte")]


def test_only_the_first_run_exports(quiet_run: QuietRun, broker_kind: str) -> None:
    quiet_run("amqtt")
    run = quiet_run(broker_kind)
    assert len(run.cache_after) == 4  # two programs, and a file of facts for each
    assert run.cache_before in ({}, run.cache_after)


def test_the_model_can_be_loaded_and_is_the_one_that_was_measured(run: Run) -> None:
    model = load_model(run.directory / "model").eval()
    dataset = datasets.load("digits", None)
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(dataset.x_test), model.all_experts())
    accuracy = float((logits.argmax(1).numpy() == dataset.y_test).mean())
    assert accuracy == pytest.approx(run.report["final"]["global_accuracy"], abs=1e-9)
