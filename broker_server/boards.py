"""What a run gave to the devices of each board and link, what bound them, and how they fared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from broker_server.record import ClientRound, Device, RoundRecord


@dataclass(frozen=True)
class BoardRow:
    """The devices of one board on one class of link; None for what none of them told.

    `asked` and `given` are mean numbers of experts over all device-rounds with work, of the
    attempts that counted; `given_last` that of the last round in which one of them had work.
    `limits` counts device-rounds by what bound k_c, and `why` has the newest figures of each.
    `train_s` and `fetch_s` are medians, `cpu_s` is the sum, `throttled_share` the mean.
    `memory_peak_mib` is the largest, under its `memory_limit_mib`.
    `kills` and `left` count device-rounds that ended so.
    """

    board: str
    link: str
    devices: int
    asked: float
    given: float
    given_last: float
    limits: dict[str, int]
    why: dict[str, str]
    train_s: float | None
    fetch_s: float | None
    cpu_s: float | None
    throttled_share: float | None
    memory_peak_mib: float | None
    memory_limit_mib: float | None
    kills: int
    left: int


def by_board(records: Sequence[RoundRecord], devices: Iterable[Device]) -> list[BoardRow]:
    """A row for each board and link whose devices had work, by name; `devices` as they are now."""
    kinds = {device.client: (device.board, device.link) for device in devices}
    rounds: defaultdict[tuple[str, str], list[list[ClientRound]]] = defaultdict(list)
    for record in records:
        at_work: defaultdict[tuple[str, str], list[ClientRound]] = defaultdict(list)
        for client in record.clients:
            at_work[kinds.get(client.client, ("", ""))].append(client)
        for kind, clients in at_work.items():
            rounds[kind].append(clients)
    return [_row(kind, rounds[kind]) for kind in sorted(rounds)]


def worth_a_table(rows: Sequence[BoardRow]) -> bool:
    """Whether some device told its board, or links differ."""
    return any(row.board for row in rows) or len({row.link for row in rows}) > 1


def _row(kind: tuple[str, str], rounds: Sequence[Sequence[ClientRound]]) -> BoardRow:
    clients = [client for at_work in rounds for client in at_work]
    cpu_s, throttled = _told(clients, "cpu_s"), _told(clients, "throttled_share")
    peak_mib, limit_mib = max(
        (_memory(client) for client in clients), key=lambda pair: pair[0] or 0.0
    )
    ends = Counter(client.status for client in clients)
    return BoardRow(
        board=kind[0],
        link=kind[1],
        devices=len({client.client for client in clients}),
        asked=fmean(client.asked for client in clients),
        given=fmean(len(client.experts) for client in clients),
        given_last=fmean(len(client.experts) for client in rounds[-1]),
        limits=dict(Counter(client.limit for client in clients).most_common()),
        why={client.limit: client.why for client in clients if client.why},
        train_s=_median(_told(clients, "train_s")),
        fetch_s=_median(_told(clients, "fetch_s")),
        cpu_s=sum(cpu_s) if cpu_s else None,
        throttled_share=fmean(throttled) if throttled else None,
        memory_peak_mib=peak_mib,
        memory_limit_mib=limit_mib,
        kills=ends["killed"],
        left=ends["gone"],
    )


def _told(clients: Iterable[ClientRound], key: str) -> list[float]:
    return [client.telemetry[key] for client in clients if key in client.telemetry]


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _memory(client: ClientRound) -> tuple[float | None, float | None]:
    """The peak that counts against its group's limit, and the limit; without one, its own peak.

    A group without a limit has other processes too.
    """
    told = client.telemetry
    own_mib, limit_mib = told.get("peak_rss_mib"), told.get("memory_limit_mib")
    return (own_mib if limit_mib is None else told.get("memory_peak_mib", own_mib)), limit_mib
