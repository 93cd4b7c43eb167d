"""The round: join, capacity, assign, push, train, collect, aggregate, score.

`run_round(state, federation)` is the algorithm of the project on one screen. What it needs from the
world stands in `Federation`; what it leaves is the next `State` and a `RoundRecord`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from broker_server import load
from broker_server.aggregation import Aggregator
from broker_server.artifacts import Artifacts
from broker_server.assignment import AssignmentPolicy
from broker_server.books.traffic import Traffic
from broker_server.capacities import (
    Past,
    asked_of,
    begun_again,
    capacities_of,
    found_caps,
    overtaxed,
)
from broker_server.capacity import Cap
from broker_server.dear import dear_pairs, without_dear
from broker_server.demand import Demand
from broker_server.evaluation import GlobalEvaluation
from broker_server.exchange import Exchange
from broker_server.experiment import Experiment
from broker_server.pace import paces_after
from broker_server.participation import choose
from broker_server.publishing.publication import Publication, changed_kinds
from broker_server.record import RoundRecord
from broker_server.recording import make_record
from broker_server.roster import Roster
from broker_server.round_problem import round_problem
from broker_server.scores import Scores
from broker_server.seeds import derive_seed
from broker_server.spool import Spool
from broker_server.state import State
from broker_server.update import decode_update
from broker_server.work import Answer
from edge_runtime.errors import FleetError
from edge_runtime.parts import ModelParts
from edge_runtime.protocol.messages import Assign, Report


@dataclass(frozen=True)
class Federation:
    """What a round works with. `incidents` tells what else happened since it was last asked."""

    experiment: Experiment
    roster: Roster
    exchange: Exchange
    spool: Spool
    publication: Publication
    artifacts: Artifacts
    policy: AssignmentPolicy
    evaluation: GlobalEvaluation
    traffic: Traffic
    incidents: Callable[[], list[str]] = list


@dataclass(frozen=True)
class Attempt:
    """A try at a round, and what there is to tell of those before it."""

    number: int
    began_s: float  # the first one, by the exchange's clock
    events: tuple[str, ...] = ()


class BeginAgain(Exception):
    """Too few answered, but `attempt`, the next one, may do: `state` is what this one taught."""

    def __init__(self, state: State, attempt: Attempt) -> None:
        super().__init__("the round begins again")
        self.state = state
        self.attempt = attempt


def run_round(
    state: State, federation: Federation, attempt: Attempt | None = None
) -> tuple[State, RoundRecord]:
    """One round. Raises `FleetError` if too few devices are there to begin, or answer.

    `BeginAgain` if another attempt may do, with fewer experts for some, or with other devices.
    """
    experiment, exchange = federation.experiment, federation.exchange
    attempt = attempt or Attempt(1, exchange.now_s())
    number = state.round + 1

    # 1. Join: who is here, in the order of their names. What they need can be published then: all
    # that follows is planned by what they hold of it.
    present = present_clients(federation)
    state = published(state, federation)

    # 2. Capacity: how many experts each can hold; who cannot hold one sits this round out.
    places = (*state.places, *(client for client in present if client not in state.places))
    past = Past(state.caps, state.paces, exchange.restarted, state.round)
    demand = Demand.of(state.model, experiment)
    roster, artifacts = federation.roster, federation.artifacts
    allowed = artifacts.allowances(present, roster, exchange.holdings)
    held = capacities_of(present, places, past, demand, experiment, roster, artifacts, allowed)
    # Of those who can hold an expert, some take part, in fair turns.
    turns = derive_seed(experiment.seed, number, "participation")
    share = experiment.participation
    able = list(held.given)
    clients, credit = choose(able, state.credit, share.fraction, share.count, turns)
    held = held.of(clients, state.paces)
    capacity = np.array([held.given[client].k for client in clients])
    sizes = {client: roster[client].hello.samples for client in clients}
    samples = np.array(list(sizes.values()))

    # 3. Assign: the most quality under balanced load.
    scores = Scores.of(state, clients, experiment)
    dear = dear_pairs(held.given, allowed)
    problem = round_problem(state, scores, samples, capacity, places, experiment, dear)
    assignment = without_dear(federation.policy(problem), problem, clients, allowed, dear)

    # 4. Push, 5. train, 6. collect: devices take what they lack, and report.
    experts = {c: np.flatnonzero(assignment.X[i]).tolist() for i, c in enumerate(clients)}
    hellos = {client: roster[client].hello for client in clients}
    work = artifacts.make_work(state, number, attempt.number, experts, roster, exchange.holdings)
    answers = exchange.run(work, experiment.round.deadline_s, experiment.round.rejoin_s)
    reports = {c: a.report for c, a in answers.items() if a.report is not None}
    found = found_caps(answers, experts, hellos)
    caps = {**state.caps, **found}
    given = {client: len(chosen) for client, chosen in experts.items()}
    paces = paces_after(held.paces, given, answers, sizes, demand, number)
    if len(reports) < experiment.round.quorum_of(len(clients)):
        taught = replace(state, caps=caps, paces=paces, credit=credit)
        raise too_few(taught, federation, attempt, answers, found, given, len(able), held.events)

    # 7. Aggregate: one update at a time, in the order of names.
    model = aggregated(state.model, federation.spool, reports, work.assigns, sizes)

    # 8. Score and evaluate. Load counts what was trained: a lost update leaves its deficit.
    trained = assignment.X & np.array([[client in reports] for client in clients])
    routed = state.routed
    for report in reports.values():
        routed = load.update_routed(routed, report.experts, report.usage)
    state = replace(
        scores.after(reports, assignment.X, experiment).into(state),
        round=number,
        model=model,
        unsent=tuple(changed_kinds(state.model, model)),
        counted={**state.counted, **dict.fromkeys(reports, number)},
        load=load.update(state.load, trained, samples),
        routed=routed,
        credit=credit,
        places=places,
        caps=caps,
        paces=paces,
    )
    record = make_record(
        state,
        devices=[roster[client].device for client in present if client in roster],
        sizes=sizes,
        experts=experts,
        assignment=assignment,
        answers=answers,
        global_accuracy=federation.evaluation.accuracy(state.model),
        traffic=federation.traffic.cut(exchange.accounts.take()),
        events=[*attempt.events, *missing(answers), *held.events, *federation.incidents()],
        round_s=exchange.now_s() - attempt.began_s,
        codecs={client: assign.codec for client, assign in work.assigns.items()},
        budgets={client: allowance.asked_bytes for client, allowance in allowed.items()},
        held=held.given,
        asked={c: asked_of(c, place, experiment) for place, c in enumerate(places) if c in sizes},
    )
    return state, record


def too_few(
    state: State,
    federation: Federation,
    attempt: Attempt,
    answers: Mapping[str, Answer],
    found: Mapping[str, Cap],
    given: Mapping[str, int],
    able: int,
    events: Sequence[str],
) -> BeginAgain | FleetError:
    """What to raise for an attempt in which too few answered.

    `state` is what it taught; `found` what devices needed that lacked memory; `given` how many
    experts each had. `able` devices could have taken part; `events` tell of their capacities.
    """
    experiment, number = federation.experiment, state.round + 1
    need = experiment.round.quorum_of(len(answers))
    count = sum(answer.report is not None for answer in answers.values())
    fewer = overtaxed(answers, given, experiment)
    turn = attempt.number < able > len(answers)
    enough = count + len(found) + len(fewer) >= need or turn
    why = begun_again(number, found, fewer, turn)
    if why and enough and attempt.number < experiment.model.experts + able:
        again = (*attempt.events, *missing(answers), *events, why)
        return BeginAgain(state, Attempt(attempt.number + 1, attempt.began_s, again))
    return FleetError(
        f"round {number}: {count} of {len(answers)} devices answered in time, "
        f"round.quorum asks for {need}; {_why(answers, federation.incidents())}"
    )


def aggregated(
    model: ModelParts,
    spool: Spool,
    reports: Mapping[str, Report],
    assigns: Mapping[str, Assign],
    sizes: Mapping[str, int],
) -> ModelParts:
    """`model` with the updates that these `reports` name; they are not kept.

    `sizes` are the clients' numbers of samples.
    """
    aggregator = Aggregator(model)
    for client in sorted(reports):
        data, assign, size = spool.get(client), assigns[client], sizes[client]
        aggregator.add(decode_update(data, reports[client], assign, size, model))
    spool.clear()
    return aggregator.result()


def run_rounds(
    state: State,
    federation: Federation,
    rounds: int,
    finished: Callable[[State, RoundRecord], None],
) -> State:
    """Rounds up to number `rounds`; `finished` is told of each, and makes it last."""
    attempt = None
    while state.round < rounds:
        try:
            state, record = run_round(state, federation, attempt)
        except BeginAgain as again:  # ends: each time some are given fewer, or it is others' turn
            state, attempt = again.state, again.attempt
            continue
        attempt = None
        finished(state, record)
    return state


def present_clients(federation: Federation) -> list[str]:
    """The devices that are there; waits for a quorum where too few are."""
    experiment = federation.experiment
    need = experiment.round.quorum_of(experiment.data.devices)
    if len(federation.roster.present) < need:
        federation.exchange.gather(need, experiment.round.join_timeout_s)
    clients = federation.roster.present
    if len(clients) < need:
        advice = "start the missing devices, or lower round.quorum or data.devices"
        raise FleetError(
            f"{len(clients)} of {experiment.data.devices} devices are connected, a round needs "
            f"{need} (round.quorum = {experiment.round.quorum}); "
            f"{'; '.join(federation.incidents())[:500] or advice}"
        )
    return clients


def published(state: State, federation: Federation) -> State:
    """`state` with its model published, as far as that was not done before."""
    publication, codecs = federation.publication, federation.roster.shared_codecs
    if state.published is None:
        model = publication.begin(state.model, codecs)
        return replace(state, model=model, published=model, ways=publication.ways)
    if publication.published is not state.published:
        publication.resume(state.published, state.ways)
    if not state.unsent:
        return state
    model = publication.publish(state.model, state.unsent, state.round, codecs)
    return replace(state, published=model, ways=publication.ways, unsent=())


def missing(answers: Mapping[str, Answer]) -> list[str]:
    """What to say of each device whose answer does not count."""
    return [f"{c}: {a.status}: {a.detail}" for c, a in answers.items() if a.status != "ok"]


def _why(answers: Mapping[str, Answer], incidents: Sequence[str]) -> str:
    said = "; ".join(f"{c}: {a.detail}" for c, a in answers.items() if a.status != "ok")
    return "; ".join(filter(None, [said[:500], "; ".join(incidents)[:500]]))
