"""`flexmoe doctor`: what a broker can take, what flexmoe needs, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from broker_server.brokers.broker import PACKET_ROOM_BYTES
from broker_server.brokers.broker_trials import QUEUE_MESSAGES, Trials, examine
from broker_server.figures import human_bytes
from edge_runtime.protocol.messages import CHUNK_BYTES, MAX_MESSAGE_BYTES, MIN_CHUNK_BYTES
from edge_runtime.transport.inbox import INBOX_PACKETS

Verdict = Literal["OK", "LESS", "FAIL", ""]

_WIDTHS = (18, 30, 30, 6)


@dataclass(frozen=True)
class Check:
    """One line: what was found and is needed; LESS: it works, but as `instead` says.

    `advice` is what to set in the broker's config, in mosquitto's words.
    """

    name: str
    found: str
    needed: str = ""
    verdict: Verdict = ""
    advice: str = ""
    instead: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All checks of one broker."""

    broker: str
    trials: Trials
    checks: list[Check]

    @property
    def usable(self) -> bool:
        """Whether flexmoe can work with this broker at all."""
        return all(check.verdict != "FAIL" for check in self.checks)


def diagnose(host: str, port: int) -> Diagnosis:
    """Examine the broker there; `BrokerError` if it cannot be reached or lets nobody subscribe."""
    trials = examine(host, port)
    return Diagnosis(f"{host}:{port}", trials, judge(trials))


def judge(trials: Trials) -> list[Check]:
    """What the findings mean."""
    return [
        Check("version", trials.version.replace(" version ", " ") or "not told"),
        _round_trip(trials),
        _largest_chunk(trials),
        _retains(trials),
        *_retained_memory(trials),
        _queue(trials),
        _counters(trials),
    ]


def to_text(diagnosis: Diagnosis) -> str:
    """A table of at most 100 columns, and what to do."""
    rows = [_row("", "found", "needed", ""), *map(_check_text, diagnosis.checks)]
    end = "flexmoe can use this broker" if diagnosis.usable else "flexmoe cannot use this broker"
    if diagnosis.usable and any(check.verdict == "LESS" for check in diagnosis.checks):
        end += ", with less than it could have"
    return "\n".join([f"broker {diagnosis.broker}", *rows, end])


def to_json(diagnosis: Diagnosis) -> str:
    """The findings, in bytes and seconds (null: none), and the checks."""
    found: dict[str, Any] = dataclasses.asdict(diagnosis.trials)
    if math.isinf(diagnosis.trials.round_trip_s):
        found["round_trip_s"] = None
    return json.dumps(
        {
            "broker": diagnosis.broker,
            "usable": diagnosis.usable,
            "found": found,
            "checks": [dataclasses.asdict(check) for check in diagnosis.checks],
        },
        indent=2,
    )


def _round_trip(trials: Trials) -> Check:
    if math.isinf(trials.round_trip_s):
        return Check(
            "round trip",
            "nothing comes back",
            "messages that arrive",
            "FAIL",
            "allow to publish and to subscribe on fm4/# (acl_file: topic readwrite fm4/#)",
        )
    return Check("round trip", f"{1000 * trials.round_trip_s:.1f} ms")


def _largest_chunk(trials: Trials) -> Check:
    size = trials.limits.chunk_bytes
    needed = f"{human_bytes(CHUNK_BYTES)}, at least {human_bytes(MIN_CHUNK_BYTES)}"
    if size >= CHUNK_BYTES:
        return Check("largest chunk", f"{human_bytes(size)} or more", needed, "OK")
    return Check(
        "largest chunk",
        human_bytes(size) if size else f"under {human_bytes(MIN_CHUNK_BYTES)}",
        needed,
        "LESS" if size else "FAIL",
        f"max_packet_size {MAX_MESSAGE_BYTES + PACKET_ROOM_BYTES}, and message_size_limit 0",
        f"chunks of {human_bytes(size)}" if size else "",
    )


def _retains(trials: Trials) -> Check:
    if trials.limits.retains:
        return Check("retained messages", "kept", "kept", "OK")
    return Check(
        "retained messages",
        "not kept",
        "kept",
        "LESS",
        "retain_available true",
        "devices ask for each chunk, and the server publishes it when they do",
    )


def _retained_memory(trials: Trials) -> list[Check]:
    asked, kept = trials.retained_asked_bytes, trials.retained_bytes
    if not asked:
        return []
    rates = f"{trials.publish_rate / 1e6:.0f} MB/s to it, {trials.read_rate / 1e6:.0f} MB/s from it"
    whole = kept == asked
    found = f"{human_bytes(kept)} of {human_bytes(asked)} kept"
    memory = Check("retained memory", found, human_bytes(asked), "OK")
    if not whole:
        memory = dataclasses.replace(
            memory,
            verdict="LESS",
            advice="memory_limit 0",
            instead="devices ask again for chunks that do not come",
        )
    return [memory, *([Check("rate", rates)] if whole else [])]


def _queue(trials: Trials) -> Check:
    count, needed = trials.queued_messages, f"{QUEUE_MESSAGES} messages"
    if count >= QUEUE_MESSAGES:
        return Check("queue of a client", f"{count} messages or more", needed, "OK")
    return Check(
        "queue of a client",
        f"{count} messages",
        needed,
        "LESS",
        f"max_queued_messages {INBOX_PACKETS}",
        "what a slow client loses is asked for again, after some seconds",
    )


def _counters(trials: Trials) -> Check:
    if trials.tells_counters:
        return Check("byte counters", "told in $SYS", "told in $SYS", "OK")
    return Check(
        "byte counters",
        "not told",
        "told in $SYS",
        "LESS",
        "sys_interval 10, and let access rules allow $SYS/broker/#",
        "bytes are compared between server and devices only",
    )


def _check_text(check: Check) -> str:
    lines = [_row(check.name, check.found, check.needed, check.verdict)]
    if check.advice:
        lines.append(_row("", f"  mosquitto: {check.advice}"))
    if check.instead:
        lines.append(_row("", f"  else: {check.instead}"))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    pairs = zip(cells, _WIDTHS, strict=False)
    return " ".join(f"{cell:{width}}" for cell, width in pairs).rstrip()
