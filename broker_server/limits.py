"""A device's `k_c` in a round: what it is asked for, its memory, compute and link, kept steady.

k falls at once to what the limits say. It rises by one, when a round with one more has fitted with
room to spare for some rounds in a row: so it does not flap where a measurement wavers at a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from broker_server.capacity import Capacity, Limit, count_of
from broker_server.demand import Demand
from broker_server.memory import killed_by
from broker_server.pace import Pace

SHARE = 0.8  # of the deadline that a round may take by what was measured
MARGIN = 0.9  # of that share, where one more is to be given
STREAK = 2  # rounds in a row in which it must have fitted
_CLEARLY = 1.25


def settled(
    holds: Capacity, pace: Pace, samples: int, demand: Demand, affords: Capacity | None = None
) -> tuple[Capacity, Pace]:
    """What a device is given this round, and its pace with that noted.

    `holds`: what it is asked for, or its memory allows. `affords`: what its budget of bytes does,
    None if that is as many. Compute and a slow link leave it at least one.
    """
    passes = samples * demand.epochs
    known = _least([holds, affords], pace)
    bound = _least(
        [known, _below_ceiling(holds.k, pace), _in_time(holds.k, pace, passes, demand)], pace
    )
    streak = 0
    if 0 < pace.k < bound.k:
        streak, more = pace.streak + 1, pace.k + 1
        if pace.round_s(more, passes, demand) > MARGIN * SHARE * demand.deadline_s:
            streak = 0
        if streak < STREAK:
            bound = Capacity(pace.k, pace.limit)
        else:
            streak = 0
            bound = bound if more == bound.k else Capacity(more, pace.limit)
    fell = bound.k < min(pace.k, known.k)  # by what was measured
    return bound, replace(
        pace,
        k=bound.k,
        limit=bound.limit,
        streak=streak,
        falls=pace.falls + fell,
        clean=pace.clean if bound.k == pace.k else 0,
    )


def _least(limits: Sequence[Capacity | None], pace: Pace) -> Capacity:
    """Among equals: asked; then what bound the device last, so that the name is steady too."""
    return min(
        (limit for limit in limits if limit is not None),
        key=lambda limit: (limit.k, limit.limit != "asked", limit.limit != pace.limit),
    )


def _below_ceiling(most: int, pace: Pace) -> Capacity | None:
    """Fewer than were too many; None if that is `most` or more."""
    if not pace.too_many or pace.ceiling >= most:
        return None
    tried = count_of(pace.too_many)
    if pace.killed:
        why = killed_by(pace.peak.limit_mib if pace.peak else None, pace.too_many)
    elif pace.cause == "memory":
        why = f"its process ended at work with {tried}"
    else:
        why = f"it was too late with {tried}"
    return Capacity(pace.ceiling, pace.cause, why)


def _in_time(most: int, pace: Pace, passes: int, demand: Demand) -> Capacity | None:
    """As many as fit the deadline by what was measured, at least one; None if `most` do."""
    time_s = SHARE * demand.deadline_s
    fitting = (k for k in range(most, 0, -1) if pace.round_s(k, passes, demand) <= time_s)
    k = next(fitting, 1)
    if k == most:
        return None
    training_s = pace.training_s(k + 1, passes)
    transfer_s = pace.transfer_s(k + 1, demand)
    # The name, too, must not flap: what bound it last does so until the other is clearly slower.
    favour = {"compute": _CLEARLY, "link": 1 / _CLEARLY}.get(pace.limit, 1.0)
    limit: Limit = "compute" if training_s * favour >= transfer_s else "link"
    figures = (
        f"a round with {count_of(k + 1)} takes {training_s + transfer_s:.3g} s, {transfer_s:.3g} s "
        f"of it on the way; {time_s:.3g} s of round.deadline_s are for it"
    )
    return Capacity(k, limit, figures)
