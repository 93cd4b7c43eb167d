"""A round's capacities: how many experts each of its devices is given, and what they found out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from broker_server.artifacts import Artifacts
from broker_server.assignment import fixed
from broker_server.budget import Allowance
from broker_server.capacity import Cap, Capacity, count_of, experts_that_fit
from broker_server.demand import Demand
from broker_server.experiment import Experiment
from broker_server.limits import settled
from broker_server.memory import Peak, killed_by
from broker_server.pace import Pace
from broker_server.processes import Restart
from broker_server.roster import Member, Roster
from broker_server.work import Answer
from edge_runtime.errors import FleetError
from edge_runtime.protocol.messages import Hello
from edge_runtime.trainer import in_mib


@dataclass(frozen=True)
class Past:
    """What the `rounds` so far showed of all clients.

    `restarted` says what ended the last processes of those that came as others since their work.
    """

    caps: Mapping[str, Cap]
    paces: Mapping[str, Pace]
    restarted: Mapping[str, Restart] = field(default_factory=dict)
    rounds: int = 0


@dataclass(frozen=True)
class Capacities:
    """What each device that can hold an expert is given.

    `paces` are those of all clients, with this noted; `news` say what is new, by client.
    """

    given: dict[str, Capacity]
    paces: dict[str, Pace]
    news: dict[str, list[str]]

    @property
    def events(self) -> list[str]:
        return [line for lines in self.news.values() for line in lines]

    def of(self, chosen: Collection[str], before: Mapping[str, Pace]) -> Capacities:
        """For those who take part, and who cannot: whoever waits its turn stays as it was."""
        waiting = self.given.keys() - set(chosen)
        kept = {client: pace for client, pace in before.items() if client in waiting}
        return Capacities(
            {client: held for client, held in self.given.items() if client not in waiting},
            {c: p for c, p in self.paces.items() if c not in waiting} | kept,
            {client: lines for client, lines in self.news.items() if client not in waiting},
        )


def capacities_of(
    clients: Sequence[str],
    places: Sequence[str],
    past: Past,
    demand: Demand,
    experiment: Experiment,
    roster: Roster,
    artifacts: Artifacts,
    allowances: Mapping[str, Allowance] = MappingProxyType({}),
) -> Capacities:
    """The capacities of `clients`; who cannot hold an expert sits the round out.

    `places` are all clients, in the order in which capacities are dealt out to them. `allowances`
    are those of clients that have a budget of bytes. `FleetError` if those that can hold an expert
    are fewer than a round needs.
    """
    all_or_nothing = experiment.assignment.policy == "full"
    given: dict[str, Capacity] = {}
    place_of = {client: place for place, client in enumerate(places)}
    rows = _rows(experiment)
    paces, why = dict(past.paces), list[str]()
    news: dict[str, list[str]] = {}
    for client in clients:
        member, cap = roster[client], past.caps.get(client)
        before = past.paces.get(client)
        if before is None or before.trainer != member.hello.trainer:
            before = Pace(member.hello.trainer)  # another trainer has another pace
        pace = before.returned(past.restarted.get(client), demand.least, past.rounds)
        place, allowance = place_of[client], allowances.get(client)
        try:
            if place >= rows:
                raise FleetError(
                    f"assignment.file has {rows} rows, none for device number {place + 1}"
                )
            if past.rounds < pace.sits_out:
                limit_mib = pace.peak.limit_mib if pace.peak else None
                raise FleetError(killed_by(limit_mib, demand.least))
            holds = _held_by(member, place, cap, pace.peak, experiment, artifacts)
        except FleetError as error:
            why.append(f"{client}: sits out: {error}")
            if (before.k, before.limit) != (0, "memory"):
                news[client] = why[-1:]
            paces[client] = replace(pace, k=0, limit="memory", streak=0)
            continue
        if all_or_nothing:  # fewer are of no use
            given[client], paces[client] = holds, replace(pace, k=holds.k, limit=holds.limit)
        else:
            affords = allowance.capacity(holds.k) if allowance else None
            samples = member.hello.samples
            given[client], paces[client] = settled(holds, pace, samples, demand, affords)
        news[client] = _news(client, before, given[client])
        if allowance and allowance.objection and client not in past.paces:
            news[client].insert(0, f"{client}: {allowance.objection}")
    need = experiment.round.quorum_of(len(clients))
    if len(given) < need:
        raise FleetError(
            f"{len(given)} of {len(clients)} devices can hold an expert, round.quorum asks "
            f"for {need}; {'; '.join(why)[:500]}"
        )
    return Capacities(given, paces, news)


def _rows(experiment: Experiment) -> float:
    """For how many devices there is an assignment: all, unless it is a fixed one."""
    settings = experiment.assignment
    if settings.policy != "fixed":
        return math.inf
    return len(fixed.read(settings.file, experiment.model.experts))


def _held_by(
    member: Member,
    place: int,
    cap: Cap | None,
    peak: Peak | None,
    experiment: Experiment,
    artifacts: Artifacts,
) -> Capacity:
    """What a device is asked for, or its memory allows: as it told it, and as it was measured."""
    hello = member.hello
    available = hello.memory_available_bytes
    if cap is not None and cap.trainer != hello.trainer:
        cap = None  # another trainer needs another amount
    if experiment.assignment.policy == "full":
        # All or nothing: the device itself finds out.
        most = asked_of(member.client, place, experiment)
        needed = cap.needed_bytes if cap is not None else 0
        return experts_that_fit(most, available, lambda k: needed, cap, least_k=most)
    need = partial(artifacts.memory_bytes, kernels=member.kernels)
    holds = experts_that_fit(asked_of(member.client, place, experiment), available, need, cap)
    return holds if peak is None else peak.allows(holds, need)


def asked_of(client: str, place: int, experiment: Experiment) -> int:
    """How many experts a client is asked to hold; `place` is its number in the order of all."""
    if experiment.assignment.policy == "full":
        return experiment.model.experts
    return experiment.experts_asked(client, place)


def _news(client: str, before: Pace, held: Capacity) -> list[str]:
    """What to say of a device's capacity, if it is another than before."""
    if (held.k, held.limit) == (before.k, before.limit):
        return []
    if held.limit == "asked":
        said = before.limit != "asked"
        return [f"{client}: holds {held.experts}, as many as it is asked for"] if said else []
    if not held.figures:
        return [f"{client}: holds {held.experts}, one more than before"]
    return [f"{client}: holds {held.experts}, its {held.limit} allows no more ({held.figures})"]


def found_caps(
    answers: Mapping[str, Answer],
    experts: Mapping[str, list[int]],
    hellos: Mapping[str, Hello],
) -> dict[str, Cap]:
    """What devices that failed for lack of memory found out about the `experts` given to them."""
    return {
        client: Cap(
            k=len(experts[client]),
            needed_bytes=answer.needed_bytes,
            memory_available_bytes=hellos[client].memory_available_bytes,
            trainer=hellos[client].trainer,
        )
        for client, answer in answers.items()
        if answer.needed_bytes
    }


def overtaxed(
    answers: Mapping[str, Answer], given: Mapping[str, int], experiment: Experiment
) -> dict[str, str]:
    """The devices that were late, or killed, with more than one expert, and what to say of them:
    fewer may do."""
    if experiment.assignment.policy == "full":
        return {}  # all or nothing
    said = {"late": "was late", "killed": "was killed"}
    return {
        client: f"{said[answer.status]} with {count_of(given[client])}"
        for client, answer in answers.items()
        if answer.status in said
        and given[client] > 1
        and not (answer.status == "late" and answer.observed.kept_waiting)
    }


def begun_again(number: int, found: Mapping[str, Cap], fewer: Mapping[str, str], turn: bool) -> str:
    """What to say of a round that begins again; empty if another attempt would be like the last.

    found, fewer: devices that are given fewer experts then. turn: it would be others' turn.
    """
    reasons = [f"{client} needs {in_mib(cap.needed_bytes)}" for client, cap in found.items()]
    reasons += [f"{client} {what}" for client, what in fewer.items()]
    if not reasons and turn:
        reasons = ["it is other devices' turn"]
    return f"round {number} begun again: {', '.join(reasons)}" if reasons else ""
