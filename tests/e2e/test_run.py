"""`flexmoe run` from end to end: a real broker, four device processes, three rounds of digits.

What the report says is computed again here from the store's finer tables, and the bytes from what
the MQTT standard says of packets.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from device_profiles import datasets
from edge_runtime.protocol.topics import server_id, up_topic
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
SIDES = ("device", "server")
COMPARISONS = ["broker in", "broker out", "up, payload", "up, packets", "down, frames"]
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
        here = f"round = {entry['round']} AND direction"
        down, up = f"{here} = 'down' AND side =", f"{here} = 'up' AND side ="
        assert ledger(run, "wire_bytes", f"{down} 'server'") == entry["egress_bytes"]
        assert ledger(run, "wire_bytes", f"{up} 'server'") == entry["ingress_bytes"]
        assert ledger(run, "wire_bytes", f"{down} 'device'") == entry["downlink_bytes"]
        assert 0 < entry["egress_bytes"] < entry["downlink_bytes"]
    final = run.report["final"]
    assert set(final["bytes_by_client"]) == set(NAMES)
    for client, sums in final["bytes_by_client"].items():
        mine = f"side = 'device' AND client = '{client}'"
        assert sums["uplink_bytes"] == ledger(run, "wire_bytes", f"{mine} AND direction = 'up'")
        assert sums["downlink_bytes"] == ledger(run, "wire_bytes", f"{mine} AND direction = 'down'")
        assert sums["payload_bytes"] == ledger(run, "payload_bytes", mine)
    for key, direction in (("uplink_bytes", "up"), ("downlink_bytes", "down")):
        whole = ledger(run, "wire_bytes", f"side = 'device' AND direction = '{direction}'")
        assert final[key] == sum(entry[key] for entry in run.report["rounds"]) == whole


def test_all_counts_agree(run: Run) -> None:
    """The server's, the devices' and the broker's, each from sockets of its own."""
    comparisons = run.report["final"]["agreement"]
    assert [comparison["name"] for comparison in comparisons] == COMPARISONS
    for comparison in comparisons:
        assert comparison["agrees"] and not comparison["why"]
        assert comparison["difference"] <= 0.001 and comparison["counted_bytes"] > 10_000
        # What is not exact are the last goodbyes, of two bytes each.
        assert abs(comparison["difference_bytes"]) <= 16 * DEVICES
    assert "all counts agree within 0.1 %" in run.end.out
    assert run.report["final"]["drops"] == {}


def test_what_the_ledger_does_not_book_is_the_connection_itself(run: Run) -> None:
    """CONNECT and SUBSCRIBE down, CONNACK and SUBACK up (MQTT 3.1.1, sections 3.1 to 3.9).

    Whatever the server should have booked and did not, would show here.
    """
    connect = 2 + 10 + 2 + len(server_id("default"))
    subscribe = 2 + 2 + 2 + len(up_topic("default", "+")) + 1
    of_connection = "side = 'server' AND kind = 'connection' AND direction ="
    down = ledger(run, "wire_bytes", f"{of_connection} 'down'") - connect - subscribe
    up = ledger(run, "wire_bytes", f"{of_connection} 'up'") - 4 - 5
    # The rest are pings of two bytes, one in 30 silent seconds.
    assert down == up
    assert down in range(0, 12, 2)


def test_both_sides_book_a_devices_bytes_by_the_same_kinds(run: Run) -> None:
    """What a device sent is what the server received, payload by payload."""
    for name in NAMES:
        mine = f"client = '{name}' AND direction = 'up' AND kind != 'connection'"
        query = f"SELECT kind, sum(payload_bytes) FROM bytes WHERE {mine} AND side = '{{}}'"
        by_side = [run.select(query.format(side) + " GROUP BY kind") for side in SIDES]
        assert {kind: size for kind, size in by_side[0] if size} == dict(by_side[1])
        assert len(by_side[1]) >= 3 + K  # control, backbone, gate, experts


def test_frames_leave_the_server_once_however_many_take_them(run: Run) -> None:
    frames = f"{TRANSFERS} AND direction = 'down' AND payload_bytes > 0 AND side ="
    assert run.select(f"SELECT DISTINCT client FROM bytes WHERE {frames} 'server'") == [("*",)]
    # All devices take every frame of the backbone; an expert's only those that work with it.
    of_backbone = "kind = 'backbone' AND direction = 'down' AND side ="
    sent = ledger(run, "payload_bytes", f"{of_backbone} 'server'")
    assert ledger(run, "payload_bytes", f"{of_backbone} 'device'") == DEVICES * sent > 0
    first = "round = 1 AND kind LIKE 'expert:%' AND direction = 'down' AND side ="
    (most,) = max(run.select(f"SELECT payload_bytes FROM bytes WHERE {first} 'server'"))
    taken = ledger(run, "payload_bytes", f"{first} 'device'")
    assert 0 < taken <= DEVICES * K * most


def test_no_program_travels_after_the_first_round(run: Run) -> None:
    later = "round > 1 AND kind = 'program' AND payload_bytes > 0"
    assert run.select(f"SELECT * FROM bytes WHERE {later}") == []


def test_bytes_of_experts_are_booked_under_the_experts_that_were_assigned(run: Run) -> None:
    for entry in run.report["rounds"]:
        assigned = {(c, f"expert:{e}") for c, es in entry["assignments"].items() for e in es}
        for direction, side in (("up", "server"), ("down", "device")):
            rows = run.select(
                f"SELECT client, kind FROM bytes WHERE round = {entry['round']} AND side = '{side}'"
                f" AND payload_bytes > 0 AND direction = '{direction}' AND kind LIKE 'expert:%'"
            )
            if direction == "up":
                assert set(rows) == assigned
            else:  # an expert that is still on the device's shelf is not sent again
                assert set(rows) <= assigned


# --- programs and the model --------------------------------------------------------------------


def test_only_the_first_run_exports(quiet_run: QuietRun, broker_kind: str) -> None:
    quiet_run("amqtt")
    run = quiet_run(broker_kind)
    before, after = run.cache_before, run.cache_after
    # Two programs, and a file of facts for each: made now, or found. Other tests may make more.
    assert len(after) - len(before) in (0, 4) and len(after) >= 4
    assert before.items() <= after.items()


def test_the_model_can_be_loaded_and_is_the_one_that_was_measured(run: Run) -> None:
    model = load_model(run.directory / "model").eval()
    dataset = datasets.load("digits", None)
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(dataset.x_test), model.all_experts())
    accuracy = float((logits.argmax(1).numpy() == dataset.y_test).mean())
    assert accuracy == pytest.approx(run.report["final"]["global_accuracy"], abs=1e-9)
