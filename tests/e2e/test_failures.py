"""What goes wrong: devices die, the broker dies, the user ends it all, strangers shout."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.protocol.ledger import EVERYONE, NOBODY
from edge_runtime.protocol.mailbox import UNKNOWN
from edge_runtime.protocol.messages import (
    DIGEST_BYTES,
    MAX_MESSAGE_BYTES,
    Account,
    Artifact,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Holding,
    Message,
    Received,
    Reject,
    Stop,
    Want,
    Welcome,
    pack,
)
from edge_runtime.protocol.topics import all_topic, blob_topic, down_topic, up_topic
from tests.e2e.conftest import PAIR, PAIR_ROUNDS
from tests.e2e.processes import (
    KERNEL_S,
    Command,
    Run,
    Workshop,
    established,
    free_port,
    learned,
    read_report,
    select,
    settings,
)
from tests.edge_runtime.examples import ASSIGN, REPORT

ENDLESS = 100_000
"""Rounds of a run that the test ends itself."""


def statuses(out: Path, client: str) -> list[str]:
    """What became of a device's work, round by round."""
    query = f"SELECT status FROM clients WHERE client = '{client}' ORDER BY round"
    return [status for (status,) in select(out, query)]


def test_a_device_that_dies_is_left_out_and_may_come_back(
    workshop: Workshop, experiment: Path, tmp_path: Path
) -> None:
    out, port, name = tmp_path / "out", free_port(), "device-01"
    changes = {"data.devices": 3, "rounds": ENDLESS, "round.rejoin_s": 0.5, "broker.port": port}
    # With more it would be given fewer when it is back, and so another program.
    changes["model.experts_per_device"] = 1
    run = workshop.start("run", experiment, *settings(changes), out=out)
    run.wait_for(lambda: run.rounds() >= 2)
    workshop.device(name).send_signal(signal.SIGKILL)
    run.wait_for(lambda: "gone" in statuses(out, name))
    dead = len(statuses(out, name))
    # The rounds go on with the others, and do not wait for it again.
    after = run.rounds() + 2
    run.wait_for(lambda: run.rounds() >= after)
    assert len(statuses(out, name)) == dead
    assert statuses(out, "device-00")[-1] == "ok"

    data = out / "data" / f"{name}.npz"
    again = workshop.start("device", "--broker", f"127.0.0.1:{port}", "--id", name, "--data", data)
    run.wait_for(lambda: statuses(out, name)[dead:].count("ok") >= 2)
    # Its programs were still on its disk; all parts were lost with its memory.
    came = f"""SELECT DISTINCT kind FROM bytes WHERE side = 'device' AND client = '{name}'
        AND direction = 'down' AND payload_bytes > 0 AND round > {after}"""
    kinds = {kind for (kind,) in select(out, came)}
    assert {"backbone", "gate"} <= kinds and "program" not in kinds

    run.signal(signal.SIGINT)
    assert run.finish().code == 130
    goodbye = again.finish()
    assert (goodbye.code, goodbye.err) == (0, "")
    assert "ended the run early" in goodbye.out
    assert workshop.left() == []

    report = read_report(out)
    assert report["final"]["left_out"][name]["gone"] == 1
    (left_out,) = [entry for entry in report["rounds"] if entry["left_out"].get(name) == "gone"]
    assert (left_out["participants"], left_out["answered"]) == (3, 2)
    assert any(name in event and "gone" in event for event in left_out["events"])
    assert report["rounds"][left_out["round"]]["participants"] == 2
    again_report = workshop.call("report", out)
    assert name in again_report.out.partition("Left out")[2]


def test_a_broker_that_dies_and_returns_costs_no_result(
    workshop: Workshop, experiment: Path, broker_kind: str, tmp_path: Path, pair_run: Run
) -> None:
    """The round that was under way goes on where it stopped, so the run comes to the same."""
    out, port = tmp_path / "out", free_port()
    broker = start_broker(workshop, port, broker_kind)
    changes = {**PAIR, "broker": f"127.0.0.1:{port}", "round.rejoin_s": 60}
    run = workshop.start("run", experiment, *settings(changes), out=out)
    run.wait_for(lambda: run.rounds() >= 2)
    broker.signal(signal.SIGKILL)
    assert broker.finish().code == -signal.SIGKILL
    assert run.rounds() < PAIR_ROUNDS
    wait_until_closed(run, port)
    start_broker(workshop, port, broker_kind)
    end = run.finish()
    assert end.code == 0
    assert learned(read_report(out)) == learned(pair_run.report)
    assert read_report(out)["final"]["left_out"] == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_a_run_keeps_its_finished_rounds(
    workshop: Workshop, experiment: Path, number: int, tmp_path: Path, pair_run: Run
) -> None:
    out = tmp_path / "out"
    run = workshop.start("run", experiment, *settings({**PAIR, "rounds": ENDLESS}), out=out)
    run.wait_for(lambda: run.rounds() >= 2)
    run.signal(number)
    assert_interrupted(run, workshop)
    report = read_report(out)
    assert report["final"]["rounds"] == len(report["rounds"]) == run.rounds() >= 2
    assert (out / "model" / "weights.npz").exists()
    common = min(len(report["rounds"]), PAIR_ROUNDS)
    assert learned(report)[:common] == learned(pair_run.report)[:common]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["torch is loading", "devices are starting"])
def test_ending_a_run_that_only_starts(
    workshop: Workshop, experiment: Path, number: int, moment: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = workshop.start("run", experiment, *settings(PAIR), out=out)
    if moment == "torch is loading":
        run.wait_for(lambda: "libtorch" in Path(f"/proc/{run.pid}/maps").read_text())
    else:
        run.wait_for(lambda: bool(workshop.alive("device")))
    run.signal(number)
    assert_interrupted(run, workshop)
    assert not (out / "report.json").exists()


def test_a_user_who_presses_ctrl_c_twice(
    workshop: Workshop, experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = workshop.start("run", experiment, *settings({**PAIR, "rounds": ENDLESS}), out=out)
    run.wait_for(lambda: run.rounds() >= 1)
    run.signal(signal.SIGINT)
    run.signal(signal.SIGINT)
    end = run.finish()
    assert end.code == 130
    told, interrupted = end.err.splitlines()
    assert interrupted == "flexmoe: interrupted"
    assert f"in {out}; go on with: flexmoe run {experiment} " in told
    assert told.endswith(f"--resume --out {out}")
    assert workshop.left(KERNEL_S) == []


def test_strangers_change_nothing(
    workshop: Workshop, experiment: Path, broker_kind: str, tmp_path: Path, pair_run: Run
) -> None:
    out, port = tmp_path / "out", free_port()
    changes = {**PAIR, "broker": broker_kind, "broker.port": port}
    run = workshop.start("run", experiment, *settings(changes), out=out)
    run.wait_for(lambda: established(run.pid, port))
    sent = shout(run, port)
    end = run.finish()
    assert (end.code, end.err) == (0, "")
    assert workshop.left() == []

    report = read_report(out)
    assert learned(report) == learned(pair_run.report)
    assert report["final"]["left_out"] == {}
    dropped = report["final"]["drops"]
    assert {"malformed", "stale", "unexpected-blob", "direction"} <= dropped.keys()
    # amqtt ends the connection that an oversized message comes on, before anybody hears of it.
    assert ("oversized" in dropped) == (broker_kind == "mosquitto")
    assert 50 < sum(dropped.values()) <= sent
    # Whatever name a stranger takes, its bytes are on nobody's account but their own.
    names = {"device-00", "device-01"}
    assert set(report["final"]["bytes_by_client"]) == names
    booked = select(out, "SELECT DISTINCT client FROM bytes WHERE side = 'server'")
    assert {client for (client,) in booked} == {NOBODY, EVERYONE, UNKNOWN} | names
    assert select(out, "SELECT sum(count) FROM drops") == [(sum(dropped.values()),)]


# --- helpers -----------------------------------------------------------------------------------


def assert_interrupted(run: Command, workshop: Workshop) -> None:
    end = run.finish()
    *told, interrupted = end.err.splitlines()
    assert interrupted == "flexmoe: interrupted"
    assert len(told) == (run.rounds() > 0)
    assert all("go on with: flexmoe " in line and " --resume" in line for line in told)
    assert end.code == 130
    assert workshop.left() == []


def start_broker(workshop: Workshop, port: int, kind: str) -> Command:
    broker = workshop.start("broker", "--port", port, "--kind", kind)
    broker.wait_for(lambda: f"listens on 127.0.0.1:{port}" in broker.output)
    return broker


def wait_until_closed(run: Command, port: int) -> None:
    """Until the run's server has noticed that its broker is dead."""
    run.wait_for(lambda: not established(run.pid, port))


def shout(run: Command, port: int) -> int:
    """Publish what no stranger should, until the run ends; how often.

    Once the devices have joined, the answers of other servers too: before that, a device cannot
    know that they are not its own server's.
    """
    with stranger("talks", port) as talks, stranger("shouts", port) as shouts:
        talks.publish(all_topic("default"), b"kept by the broker", 1, retain=True)
        sent = 1
        while run.process.poll() is None:
            # A broker may end the connection for it, so it comes on one of its own.
            shouts.publish(up_topic("default", "nobody"), bytes(MAX_MESSAGE_BYTES + 100), 0)
            messages = hostile_messages(answers=run.rounds() >= 1)
            for i, (topic, payload) in enumerate(messages):
                talks.publish(topic, payload, i % 3)
                time.sleep(0.002)
            sent += 1 + len(messages)
    return sent


@contextlib.contextmanager
def stranger(name: str, port: int) -> Iterator[paho.Client]:
    client = paho.Client(CallbackAPIVersion.VERSION2, name)
    client.connect("127.0.0.1", port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def hostile_messages(answers: bool) -> list[tuple[str, bytes]]:
    """Topics and payloads: no messages at all, and good ones at the wrong time or place."""
    digest = bytes(range(DIGEST_BYTES))
    other = "another-session"
    report = dataclasses.replace(
        REPORT, session=other, round=1, experts=[0, 1], update=BlobRef(digest, 1000)
    )
    huge = Artifact(digest, b"", [BlobRef(digest, 1 << 30)])
    small = Artifact(digest, b"", [BlobRef(digest, 1000)])
    work = dataclasses.replace(
        ASSIGN,
        session=other,
        round=1,
        experts=[0, 1],
        training_program=huge,
        evaluation_program=huge,
        backbone=small,
        gate=small,
        expert_parts=[small, small],
    )
    garbage = [
        b"",
        b"\xff" * 100,
        b"\xdd\xff\xff\xff\xff",  # a msgpack array of four billion items
        b"\x91" * 5000,  # five thousand arrays, one in the other
        pack(report)[:-3],
    ]
    to_server: list[Message] = [
        report,
        Failed(other, 1, 1, "no", 0),
        Chunk(digest, 0, bytes(1000)),
        Fetch([Want(digest, 0, 4096)]),
        Holding(other, 1, 1, [digest]),
        Account(other, report.account),
        Stop(other, "the end"),
    ]
    to_device: list[Message] = [
        work,
        Stop(other, "the end"),
        Received(other, 1, 1),
        Chunk(digest, 3, bytes(250)),
        Fetch([Want(digest, 0, 4096)]),
        report,
    ]
    to_device += [Welcome(other, 4096, True), Reject(other, "go away")] if answers else []
    messages = [(all_topic("default"), payload) for payload in garbage]
    messages += [(all_topic("default"), pack(message)) for message in to_device]
    messages += [(blob_topic("default", digest, index), bytes(250)) for index in range(3)]
    for name in ("device-00", "device-01", "nobody"):
        messages += [(up_topic("default", name), payload) for payload in garbage]
        messages += [(up_topic("default", name), pack(message)) for message in to_server]
        messages += [(down_topic("default", name), payload) for payload in garbage]
        messages += [(down_topic("default", name), pack(message)) for message in to_device]
    return messages
