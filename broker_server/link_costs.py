"""What a round costs a device on each class of link, and what its budget asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker_server.link_bytes import LinkRound, carried, mean_rounds
from broker_server.record import RoundRecord
from device_profiles.link_class import LINKS, Cost, LinkClass, cost


@dataclass(frozen=True)
class TypicalRounds:
    """A round's bytes of one device: on average over the devices, and of the one with the most."""

    mean: LinkRound
    worst_client: str
    worst: LinkRound


@dataclass(frozen=True)
class Budgeted:
    """What a device's link was to carry in a round at most, and what it carried, bytes.

    `codec` and `asked_bytes` are the last round's, `over` counts the rounds above their budget.
    """

    codec: str
    asked_bytes: int
    mean_bytes: float
    most_bytes: float
    rounds: int
    over: int


def typical_rounds(records: Sequence[RoundRecord]) -> TypicalRounds | None:
    """The rounds to price; None if no device had work."""
    means = mean_rounds(records)
    if not means:
        return None
    worst = max(means, key=lambda client: means[client].total_bytes)
    mean = LinkRound(
        sum(link.up_bytes for link in means.values()) / len(means),
        sum(link.down_bytes for link in means.values()) / len(means),
    )
    return TypicalRounds(mean, worst, means[worst])


def costs(typical: TypicalRounds) -> list[tuple[LinkClass, Cost, Cost]]:
    """For each class of link, what the mean device's round and the worst one's cost."""
    return [
        (
            link,
            cost(link, typical.mean.up_bytes, typical.mean.down_bytes),
            cost(link, typical.worst.up_bytes, typical.worst.down_bytes),
        )
        for link in LINKS.values()
    ]


def budgeted(records: Sequence[RoundRecord]) -> dict[str, Budgeted]:
    """By client that ever had a budget: what was asked for, and what it got."""
    got: dict[str, list[tuple[str, int, float]]] = {}
    for record in records:
        links = carried(record.bytes)
        for client in record.clients:
            if client.budget_bytes:
                total = links[client.client].total_bytes if client.client in links else 0
                got.setdefault(client.client, []).append((client.codec, client.budget_bytes, total))
    return {
        client: Budgeted(
            codec=rounds[-1][0],
            asked_bytes=rounds[-1][1],
            mean_bytes=sum(total for *_, total in rounds) / len(rounds),
            most_bytes=max(total for *_, total in rounds),
            rounds=len(rounds),
            over=sum(total > asked for _, asked, total in rounds),
        )
        for client, rounds in sorted(got.items())
    }
