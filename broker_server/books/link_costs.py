"""What a round costs a device on each class of link, and what its budget asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from broker_server.books.link_bytes import LinkRound
from broker_server.record import ClientRound, RoundRecord
from device_profiles.catalogue.link_class import Cost, LinkClass, cost
from device_profiles.catalogue.profiles import PUBLISHED_LINKS

_NOTHING = LinkRound(0, 0)


@dataclass(frozen=True)
class TypicalRounds:
    """A round's bytes of one device: on average over the devices, and of the one with the most."""

    mean: LinkRound
    worst_client: str
    worst: LinkRound


class MeanRounds:
    """What each device's link carried on average in the rounds that it had work in.

    Rounds that it sat out and the end of the run are left out, rounds and bytes alike.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, float, float]] = {}

    def add(self, record: RoundRecord, links: Mapping[str, LinkRound]) -> None:
        """Count a round; `links` are what it carried, by client."""
        for client in record.clients:
            link = links.get(client.client, _NOTHING)
            rounds, up, down = self._sums.get(client.client, (0, 0, 0))
            self._sums[client.client] = (rounds + 1, up + link.up_bytes, down + link.down_bytes)

    def typical(self) -> TypicalRounds | None:
        """The rounds to price; None if no device had work."""
        means = {
            client: LinkRound(up / rounds, down / rounds)
            for client, (rounds, up, down) in sorted(self._sums.items())
        }
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
        for link in PUBLISHED_LINKS.values()
    ]


@dataclass(frozen=True)
class Budgeted:
    """What a device's link was to carry in a round at most, and what it carried, bytes.

    `experts` (how many), `codec` and `asked_bytes` are the last round's. The others are of the
    rounds whose bytes are known for sure, `rounds` of them: `mean_bytes` and `most_bytes` are NaN
    if there is none. `over` counts those above their budget, and `last_over` is the last of them;
    0 if there was none.
    """

    experts: int
    codec: str
    asked_bytes: int
    mean_bytes: float
    most_bytes: float
    rounds: int
    over: int
    last_over: int


@dataclass
class _Budget:
    """A device's budget so far; `last` is its last round with one."""

    last: ClientRound
    total_bytes: float = 0
    most_bytes: float = 0
    rounds: int = 0
    over: int = 0
    last_over: int = 0


class BudgetedRounds:
    """By client that ever had a budget: what was asked for, and what it got.

    The bytes of a round in which a device gave no report that counts come with its next account:
    neither round is judged.
    """

    def __init__(self) -> None:
        self._found: dict[str, _Budget] = {}
        self._behind: set[str] = set()  # their next account holds more than one round

    def add(self, record: RoundRecord, links: Mapping[str, LinkRound]) -> None:
        """Count a round; `links` are what it carried, by client. Rounds come in order."""
        for client in record.clients:
            behind = client.client in self._behind
            if client.status != "ok":
                self._behind.add(client.client)
            else:
                self._behind.discard(client.client)
            if not client.budget_bytes:
                continue
            budget = self._found.setdefault(client.client, _Budget(client))
            budget.last = client
            if behind or client.status != "ok":
                continue
            total_bytes = links.get(client.client, _NOTHING).total_bytes
            budget.rounds += 1
            budget.total_bytes += total_bytes
            budget.most_bytes = max(budget.most_bytes, total_bytes)
            if total_bytes > client.budget_bytes:
                budget.over, budget.last_over = budget.over + 1, record.round

    def found(self) -> dict[str, Budgeted]:
        """By client, in their order."""
        return {
            client: Budgeted(
                experts=len(budget.last.experts),
                codec=budget.last.codec,
                asked_bytes=budget.last.budget_bytes,
                mean_bytes=budget.total_bytes / budget.rounds if budget.rounds else math.nan,
                most_bytes=budget.most_bytes if budget.rounds else math.nan,
                rounds=budget.rounds,
                over=budget.over,
                last_over=budget.last_over,
            )
            for client, budget in sorted(self._found.items())
        }
