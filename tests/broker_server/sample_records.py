"""Records as a small run would leave them, for the tests of what stores and shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from broker_server.record import BytesRow, ClientRound, Device, RoundRecord
from edge_runtime.protocol.ledger import EVERYONE, NOBODY

KINDS = ("backbone", "gate", "expert:0", "expert:1", "control")


def client_round(name: str, number: int = 1) -> ClientRound:
    return ClientRound(
        client=name,
        experts=[0, 1],
        usage=[60 + number, 40 - number],
        loss=[0.5 / number, 0.25],
        hits=[50, 30],
        quality=[0.6, 0.78],
        samples=100,
        device_accuracy=0.75,
        telemetry={"cpu_s": 1.5, "peak_rss_mib": 390.25},
        status="ok",
        asked=3,
        capacity=2,
        limit="memory",
        why="3 need 21 MiB, its limit of 64 MiB leaves 18",
    )


def late_client(name: str) -> ClientRound:
    return replace(
        client_round(name),
        usage=[],
        loss=[],
        hits=[],
        device_accuracy=math.nan,
        telemetry={},
        status="late",
        detail="no answer by the deadline of 120 s",
    )


def device(name: str) -> Device:
    return Device(name, 100, 25, "executorch", "aarch64", 4.0, 2**31, "0.1.0")


def byte_rows(names: Sequence[str]) -> list[BytesRow]:
    """A round's rows: each device sends an update, and takes a frame of each part.

    Up, each kind is 1000, 2000, ... payload bytes in 2 packets with 50 bytes around them; down, the
    same, published once for all of them, but for the control messages. Each packet is answered by
    one of 4 bytes.
    """
    rows = [
        BytesRow("server", NOBODY, "down", "connection", 0, 60, 0),
        BytesRow("server", NOBODY, "up", "connection", 0, 90, 0),
    ]
    for place, kind in enumerate(KINDS):
        payload, wire, acks = 1000 * (1 + place), 1000 * (1 + place) + 50, 8
        control = kind == "control"
        if not control:
            rows += [
                BytesRow("server", EVERYONE, "down", kind, payload, wire, 2),
                BytesRow("server", EVERYONE, "up", kind, 0, acks, 0),
            ]
        for name in names:
            sent = BytesRow("server", name, "up", kind, payload, wire + acks * control, 2)
            answered = BytesRow("server", name, "down", kind, 0, acks, 0)
            told = BytesRow("server", name, "down", kind, payload, wire + acks, 2)
            rows += [sent, told if control else answered]
            for direction in ("up", "down"):
                rows.append(BytesRow("device", name, direction, kind, payload, wire + acks, 2))
    for name in names:
        rows.append(BytesRow("device", name, "down", "connection", 0, 30, 0))
        rows.append(BytesRow("device", name, "up", "connection", 0, 70, 0))
    return sorted(rows)


def round_record(
    number: int = 1, names: tuple[str, ...] = ("device-00", "device-01")
) -> RoundRecord:
    """A round in which every device answered."""
    rows = byte_rows(names)
    own = [row for row in rows if row.side == "device"]
    ours = [row for row in rows if row.side == "server"]
    return RoundRecord(
        round=number,
        global_accuracy=1 - 0.5 / number,
        device_accuracy=0.75,
        loss=1.25 / number,
        uplink_bytes=sum(row.wire_bytes for row in own if row.direction == "up"),
        downlink_bytes=sum(row.wire_bytes for row in own if row.direction == "down"),
        egress_bytes=sum(row.wire_bytes for row in ours if row.direction == "down"),
        ingress_bytes=sum(row.wire_bytes for row in ours if row.direction == "up"),
        load_cv=0.0125,
        usage_cv=0.375,
        routed_cv=0.25,
        assign_s=0.015625,
        train_s=1.5,
        round_s=2.5,
        participants=len(names),
        answered=len(names),
        objective=3.5,
        bound=3.5,
        gap=0.0,
        violated_samples=0,
        least_violation=0.0,
        solver="cp-sat",
        load=[200 * number, 200 * number],
        usage=[122, 78],
        clients=[client_round(name, number) for name in names],
        bytes=rows,
    )


def troubled_record(number: int = 2) -> RoundRecord:
    """A round with a late device, missed bounds, dropped messages and nothing to measure."""
    record = round_record(number)
    return replace(
        record,
        global_accuracy=math.nan,
        loss=math.nan,
        answered=1,
        violated_samples=120,
        least_violation=100.0,
        clients=[record.clients[0], late_client("device-01")],
        drops={"malformed": 2, "stale": 1},
        events=[
            "device-01: late: no answer by the deadline of 120 s",
            "device-01 left: connection lost",
        ],
    )
