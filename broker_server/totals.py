"""What a run's rounds add up to: accuracies, bytes, memory, who was left out, what was dropped."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from broker_server.boards import by_board
from broker_server.books.agreement import Agreement
from broker_server.books.link_costs import costs
from broker_server.books.run_bytes import RunBytes, added
from broker_server.record import Device, RoundRecord


def final(
    records: Sequence[RoundRecord], run: RunBytes, agreement: Agreement = ()
) -> dict[str, Any]:
    """The last round's accuracies and balance, and sums over all rounds; bytes are those of `run`.

    Of the devices' peaks of resident memory, ``device_peak_rss_mib`` is the largest,
    ``device_mean_rss_mib`` the mean and ``fleet_rss_mib`` the sum. ``device_cpu_s`` is the sum of
    all devices.
    """
    if not records:
        return {"rounds": 0}
    last = records[-1]
    peaks, cpu = _peaks(records), _telemetry(records, "cpu_s")
    return {
        "rounds": len(records),
        "global_accuracy": last.global_accuracy,
        "best_global_accuracy": max(
            (r.global_accuracy for r in records if not math.isnan(r.global_accuracy)), default=None
        ),
        "device_accuracy": last.device_accuracy,
        "loss": last.loss,
        "load_cv": last.load_cv,
        "usage_cv": last.usage_cv,
        "routed_cv": last.routed_cv,
        "uplink_bytes": run.links.up.wire_bytes,
        "downlink_bytes": run.links.down.wire_bytes,
        "egress_bytes": run.server.down.wire_bytes,
        "ingress_bytes": run.server.up.wire_bytes,
        "rounds_s": sum(r.round_s for r in records),
        "violated_samples": sum(r.violated_samples for r in records),
        "device_peak_rss_mib": max(peaks.values(), default=None),
        "device_mean_rss_mib": sum(peaks.values()) / len(peaks) if peaks else None,
        "fleet_rss_mib": sum(peaks.values()) if peaks else None,
        "memory_by_trainer": memory(records),
        "device_cpu_s": sum(cpu) if cpu else None,
        "boards": [asdict(row) for row in by_board(records, devices(records))],
        "drops": drops(records),
        "left_out": {
            client: {status: len(rounds) for status, (rounds, _) in by_status.items()}
            for client, by_status in left_out(records).items()
        },
        **_bytes(run),
        "budgets": {client: asdict(budget) for client, budget in run.budgets.found().items()},
        "links": _links(run),
        "agreement": [
            {
                **asdict(comparison),
                "difference_bytes": comparison.difference_bytes,
                "difference": comparison.difference,
                "agrees": comparison.agrees,
            }
            for comparison in agreement
        ],
    }


def _bytes(run: RunBytes) -> dict[str, Any]:
    """By client and kind what the devices' links carried; by kind what the server sent."""
    return {
        "bytes_by_client": {
            client: added(run.devices[client].values()).as_dict() for client in sorted(run.devices)
        },
        "bytes_by_kind": {kind: run.kinds[kind].as_dict() for kind in sorted(run.kinds)},
        "egress_bytes_by_kind": run.egress,
    }


def _links(run: RunBytes) -> dict[str, Any]:
    """A device's mean round, and what it costs on each class of link: mean and worst device."""
    typical = run.means.typical()
    if typical is None:
        return {}
    return {
        "mean_round": asdict(typical.mean),
        "worst_round": {"client": typical.worst_client, **asdict(typical.worst)},
        "costs": {
            link.name: {"mean": asdict(mean), "worst": asdict(worst)}
            for link, mean, worst in costs(typical)
        },
    }


def memory(records: Sequence[RoundRecord]) -> dict[str, dict[str, float]]:
    """By trainer: ``devices``, and of their peaks of resident memory the largest, mean and sum."""
    trainers = {device.client: device.trainer for device in devices(records)}
    groups: dict[str, list[float]] = defaultdict(list)
    for client, peak in _peaks(records).items():
        groups[trainers.get(client, "unknown")].append(peak)
    return {
        trainer: {
            "devices": len(peaks),
            "largest_mib": max(peaks),
            "mean_mib": sum(peaks) / len(peaks),
            "sum_mib": sum(peaks),
        }
        for trainer, peaks in sorted(groups.items())
    }


def _peaks(records: Sequence[RoundRecord]) -> dict[str, float]:
    """Each device's peak of resident memory, MiB, where it tells one."""
    peaks: dict[str, float] = {}
    for client in (client for record in records for client in record.clients):
        if "peak_rss_mib" in client.telemetry:
            peak = client.telemetry["peak_rss_mib"]
            peaks[client.client] = max(peak, peaks.get(client.client, 0.0))
    return peaks


def _telemetry(records: Sequence[RoundRecord], key: str) -> list[float]:
    """What the devices' reports say under `key`, where they say it."""
    return [c.telemetry[key] for r in records for c in r.clients if key in c.telemetry]


def devices(records: Sequence[RoundRecord]) -> list[Device]:
    """The devices by name, each as it last described itself."""
    newest = {device.client: device for record in records for device in record.devices}
    return [newest[client] for client in sorted(newest)]


def drops(records: Sequence[RoundRecord]) -> dict[str, int]:
    """Dropped messages by reason, the most frequent first."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.drops)
    return dict(total.most_common())


def left_out(
    records: Sequence[RoundRecord],
) -> dict[str, dict[str, tuple[list[int], str]]]:
    """Client -> status -> (rounds, last detail), for all but ``ok``."""
    found: dict[str, dict[str, tuple[list[int], str]]] = defaultdict(dict)
    for record in records:
        for client in record.clients:
            if client.status != "ok":
                rounds, _ = found[client.client].get(client.status, ([], ""))
                found[client.client][client.status] = ([*rounds, record.round], client.detail)
    return dict(sorted(found.items()))
