"""A round's capacities: how many experts each of its devices is given, and what they found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from broker_server.artifacts import Artifacts
from broker_server.capacity import Cap, Capacity, experts_that_fit
from broker_server.experiment import Experiment
from broker_server.roster import Member, Roster
from broker_server.work import Answer
from edge_runtime.errors import FleetError
from edge_runtime.messages import Hello
from edge_runtime.trainer import in_mib


def capacities_of(
    clients: Sequence[str],
    places: Sequence[str],
    caps: Mapping[str, Cap],
    experiment: Experiment,
    roster: Roster,
    artifacts: Artifacts,
) -> tuple[dict[str, Capacity], list[str]]:
    """k of each device that can hold an expert, and what to say of the others.

    `places` are all clients, in the order in which capacities are dealt out to them.
    `FleetError` if they are fewer than a round needs.
    """
    capacities: dict[str, Capacity] = {}
    events: list[str] = []
    for client in clients:
        try:
            held = _capacity_of(
                roster[client], places.index(client), caps.get(client), experiment, artifacts
            )
        except FleetError as error:
            events.append(f"{client}: sits out: {error}")
            continue
        capacities[client] = held
        if held.limit != "asked":
            what = "1 expert" if held.k == 1 else f"{held.k} experts"
            events.append(f"{client}: holds {what}, its {held.limit} allows no more")
    need = experiment.round.quorum_of(len(clients))
    if len(capacities) < need:
        raise FleetError(
            f"{len(capacities)} of {len(clients)} devices can hold an expert, round.quorum asks "
            f"for {need}; {'; '.join(events)[:500]}"
        )
    return capacities, events


def _capacity_of(
    member: Member, place: int, cap: Cap | None, experiment: Experiment, artifacts: Artifacts
) -> Capacity:
    hello = member.hello
    available = hello.memory_available_bytes
    if cap is not None and cap.trainer != hello.trainer:
        cap = None  # another trainer needs another amount
    if experiment.assignment.policy == "full":
        # All or nothing: the device itself finds out.
        most, needed = experiment.model.experts, cap.needed_bytes if cap is not None else 0
        return experts_that_fit(most, available, lambda k: needed, cap, least_k=most)
    need = partial(artifacts.memory_bytes, kernels=member.kernels)
    return experts_that_fit(experiment.model.experts_asked(place), available, need, cap)


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


def begun_again(number: int, found: Mapping[str, Cap]) -> str:
    """What to say of a round that begins again because of `found`."""
    needs = ", ".join(f"{c} needs {in_mib(cap.needed_bytes)}" for c, cap in found.items())
    return f"round {number} begun again: {needs}"
