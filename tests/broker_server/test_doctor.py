"""`flexmoe doctor` on brokers as they come, and on ones that lack something."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from broker_server import cli
from broker_server.brokers import broker_limits, broker_trials
from broker_server.brokers.broker import Broker, free_port
from broker_server.brokers.broker_limits import BrokerLimits
from broker_server.brokers.broker_trials import QUEUE_MESSAGES, RETAINED_BYTES, Trials
from broker_server.brokers.doctor import Diagnosis, diagnose, judge, to_json, to_text
from broker_server.brokers.probe_client import ProbeClient
from edge_runtime.errors import BrokerError
from edge_runtime.protocol.messages import CHUNK_BYTES
from tests.broker_server.own_config import mosquitto

GOOD = Trials(
    version="a broker 1.0",
    tells_counters=True,
    round_trip_s=0.01,
    limits=BrokerLimits(True, CHUNK_BYTES),
    queued_messages=QUEUE_MESSAGES,
    retained_asked_bytes=RETAINED_BYTES,
    retained_bytes=RETAINED_BYTES,
    publish_rate=1e8,
    read_rate=2e8,
)


@pytest.fixture(autouse=True)
def a_near_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (broker_limits, broker_trials):
        monkeypatch.setattr(module, "ARRIVAL_S", 0.5)


def verdicts(diagnosis: Diagnosis) -> dict[str, str]:
    return {check.name: check.verdict for check in diagnosis.checks if check.verdict}


def test_our_own_brokers_are_healthy(broker: Broker) -> None:
    diagnosis = diagnose(broker.host, broker.port)
    assert set(verdicts(diagnosis).values()) == {"OK"} and diagnosis.usable
    found = diagnosis.trials
    assert broker.kind in found.version.lower()
    assert found.retained_bytes == found.retained_asked_bytes == RETAINED_BYTES
    assert 0 < found.round_trip_s < 10 and found.publish_rate > 0 and found.read_rate > 0
    with ProbeClient(broker.host, broker.port) as client:
        assert client.subscribe(["fm4/#"], 1)
        left = []
        while (message := client.receive(0.3)) is not None:
            left.append(message.topic)
    assert not [topic for topic in left if topic.startswith("fm4/probe-")]


def test_mosquitto_as_it_comes_is_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mosquitto(tmp_path, monkeypatch) as broker:
        diagnosis = diagnose(broker.host, broker.port)
    assert set(verdicts(diagnosis).values()) == {"OK"}


def test_what_a_broker_lacks_is_named_and_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(broker_trials, "_TELLS_S", 0.3)
    lines = ["max_packet_size 40000", "retain_available false", "max_queued_messages 10"]
    with mosquitto(tmp_path, monkeypatch, *lines, "sys_interval 0") as broker:
        address = f"{broker.host}:{broker.port}"
        assert cli.main(["doctor", "--broker", address]) == 0
        text = capsys.readouterr().out
    assert text.count("LESS") == 4 and "FAIL" not in text
    for key in ("max_packet_size", "retain_available", "max_queued_messages", "sys_interval"):
        assert f"mosquitto: {key} " in text
    assert "else: chunks of 32.0 KiB" in text
    assert "30 messages" in text  # 20 in flight and 10 queued
    assert text.splitlines()[-1] == ("flexmoe can use this broker, with less than it could have")
    assert max(map(len, text.splitlines())) <= 100


def test_a_broker_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with mosquitto(tmp_path, monkeypatch, "max_packet_size 3000") as broker:
        address = f"{broker.host}:{broker.port}"
        assert cli.main(["doctor", "--broker", address, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["broker"], told["usable"]) == (address, False)
    assert told["found"]["limits"] == {"retains": True, "chunk_bytes": 0}
    assert [check["name"] for check in told["checks"] if check["verdict"] == "FAIL"] == [
        "largest chunk"
    ]


def test_nobody_is_there() -> None:
    with pytest.raises(BrokerError, match="no MQTT broker answers"):
        cli.main(["doctor", "--broker", f"127.0.0.1:{free_port()}"])


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({}, None, None),
        ({"round_trip_s": float("inf")}, "round trip", "FAIL"),
        ({"limits": BrokerLimits(True, 0)}, "largest chunk", "FAIL"),
        ({"limits": BrokerLimits(True, 4096)}, "largest chunk", "LESS"),
        ({"retained_bytes": RETAINED_BYTES - CHUNK_BYTES}, "retained memory", "LESS"),
        ({"queued_messages": QUEUE_MESSAGES - 1}, "queue of a client", "LESS"),
        ({"tells_counters": False}, "byte counters", "LESS"),
    ],
)
def test_each_finding_is_judged(
    change: dict[str, object], name: str | None, verdict: str | None
) -> None:
    trials = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    diagnosis = Diagnosis("b:1883", trials, judge(trials))
    bad = {key: value for key, value in verdicts(diagnosis).items() if value != "OK"}
    assert bad == ({name: verdict} if name else {})
    assert diagnosis.usable == (verdict != "FAIL")
    assert all(check.advice for check in diagnosis.checks if check.verdict in ("LESS", "FAIL"))
    assert all(check.instead for check in diagnosis.checks if check.verdict == "LESS")
    assert json.loads(to_json(diagnosis))["usable"] == diagnosis.usable
    assert to_text(diagnosis).splitlines()[0] == "broker b:1883"
