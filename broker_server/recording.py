"""From what happened in a round to its `RoundRecord`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from broker_server import load
from broker_server.assignment import Assignment
from broker_server.books.traffic import RoundTraffic, merged
from broker_server.capacity import Capacity
from broker_server.record import ClientRound, Device, RoundRecord
from broker_server.state import State
from broker_server.work import Answer


def make_record(
    state: State,
    *,
    devices: Sequence[Device],
    sizes: Mapping[str, int],
    experts: Mapping[str, list[int]],
    assignment: Assignment,
    answers: Mapping[str, Answer],
    global_accuracy: float,
    traffic: RoundTraffic,
    events: Sequence[str],
    round_s: float,
    codecs: Mapping[str, str],
    budgets: Mapping[str, int],
    held: Mapping[str, Capacity],
    asked: Mapping[str, int],
) -> RoundRecord:
    """The record of the round that led to `state`; `devices` are those that were there.

    By client that had work: `sizes` (n_c), `experts`, `answers`, of which at least one is good,
    `codecs` of the updates, the `budgets` of links that have one, bytes, what it `held` at most and
    was `asked` to hold. `round_s` is of life.
    """
    reports = [answer.report for answer in answers.values() if answer.report is not None]
    usage = np.zeros(len(state.load), np.int64)
    for report in reports:
        usage[report.experts] += report.usage
    weights = [sizes[c] for c, a in answers.items() if a.report]
    tested = [r.test_hits / r.test_samples for r in reports if r.test_samples]
    return RoundRecord(
        round=state.round,
        global_accuracy=global_accuracy,
        device_accuracy=float(np.mean(tested)) if tested else float("nan"),
        loss=float(np.average([r.train_loss for r in reports], weights=weights)),
        uplink_bytes=traffic.uplink_bytes,
        downlink_bytes=traffic.downlink_bytes,
        egress_bytes=traffic.egress_bytes,
        ingress_bytes=traffic.ingress_bytes,
        load_cv=load.coefficient_of_variation(state.load),
        usage_cv=load.coefficient_of_variation(usage),
        routed_cv=load.coefficient_of_variation(state.routed),
        assign_s=assignment.solve_s,
        train_s=max(report.telemetry.get("train_s", 0.0) for report in reports),
        round_s=round_s,
        participants=len(sizes),
        answered=len(reports),
        objective=assignment.objective,
        bound=assignment.bound,
        gap=assignment.gap,
        violated_samples=round(float(np.abs(assignment.violated).sum())),
        least_violation=assignment.violation_bound,
        solver=assignment.solver,
        load=state.load.tolist(),
        usage=usage.tolist(),
        clients=[
            replace(
                _client_round(c, samples, experts[c], answers[c], state),
                codec=codecs.get(c, ""),
                budget_bytes=budgets.get(c, 0),
                asked=asked[c],
                capacity=held[c].k,
                limit=held[c].limit,
                why=held[c].figures,
            )
            for c, samples in sizes.items()
        ],
        bytes=traffic.rows,
        drops=traffic.drops,
        events=list(events),
        devices=list(devices),
    )


def closed_record(record: RoundRecord, closing: RoundTraffic) -> RoundRecord:
    """The record of the last round, with what the end of the run moved and dropped."""
    return replace(
        record,
        uplink_bytes=record.uplink_bytes + closing.uplink_bytes,
        downlink_bytes=record.downlink_bytes + closing.downlink_bytes,
        egress_bytes=record.egress_bytes + closing.egress_bytes,
        ingress_bytes=record.ingress_bytes + closing.ingress_bytes,
        bytes=merged([*record.bytes, *closing.rows]),
        drops=dict(Counter(record.drops) + Counter(closing.drops)),
    )


def _client_round(
    client: str,
    samples: int,
    experts: list[int],
    answer: Answer,
    state: State,
) -> ClientRound:
    report = answer.report
    tested = report is not None and report.test_samples > 0
    return ClientRound(
        client=client,
        experts=experts,
        usage=report.usage if report else [],
        loss=report.loss if report else [],
        hits=report.hits if report else [],
        quality=state.quality[client][experts].tolist(),
        samples=samples,
        device_accuracy=report.test_hits / report.test_samples
        if report and tested
        else float("nan"),
        telemetry=dict(report.telemetry) if report else {},
        status=answer.status,
        detail=answer.detail,
    )
