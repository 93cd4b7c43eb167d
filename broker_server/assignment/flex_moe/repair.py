"""From the clients' answer to prices to an assignment within its bounds, at the least loss.

At good prices few clients are in the wrong place: those for whom two choices are worth almost the
same. What a client loses by another choice, in quality less prices, is its *regret*; the gap that
is left at the end is the sum of regrets, and of priced load that is not there.

1. `move_out`: many single moves at once, from experts above their bounds, to those below.
2. `fit`: single moves and swaps of two clients, the latter to move less load than a client has.
3. `improve`: moves and swaps that raise the quality and keep the bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.flex_moe.exits import Exits
from broker_server.assignment.flex_moe.plan import STILL, Plan

_BATCHES = 30
_MOVES, _SPARE = 64, 20.0  # moves of a batch: at least, and times the mean moves that would do
_WAYS = 24  # exits of a pair of experts, or fewer:
_CHANGES = 40_000  # of an expert, to look at in one go
_PROGRESS = 1e-3  # of the violation: a pass that lowers it by less is the last
_SWEEPS = 12
_LEAST_GAIN = 1e-8  # of what quality could differ by: a sweep that gains less is the last
_MUCH = 0.3  # of the most priced load that a change can bring
_GOOD_ENOUGH = 0.5  # of the best reduction: among these the least regret is taken


def move_out(plan: Plan, prices: NDArray[np.float64], clients: NDArray[np.int64]) -> None:
    """Move `clients` out of experts with too much load and into those with too little."""
    quality = np.asarray(plan.problem.quality[clients], np.float64)
    every = np.arange(plan.problem.experts)
    weights = plan.weights(clients[:, None], every)
    usual = float(weights.mean())
    if usual <= STILL:
        return  # nothing to move
    worth = quality - weights * prices
    for _ in range(_BATCHES):
        violated = plan.violated
        if np.abs(violated).sum() <= STILL:
            return
        held, over, under = plan.X[clients], violated > 0, violated < 0
        ways = [
            _cheapest(worth, held & over, ~held & ~over),
            _cheapest(worth, held & ~under, ~held & under),
        ]
        regret, who, source, target = (np.concatenate(parts) for parts in zip(*ways, strict=True))
        carried = np.where(over[source], weights[who, source], weights[who, target])
        price = np.divide(regret, carried, out=np.full(len(who), np.inf), where=carried > STILL)
        wanted = _MOVES + int(min(len(who), _SPARE * float(np.abs(violated).sum()) / usual))
        if not _apply(
            plan, clients, who, source, target, np.argsort(price, kind="stable")[:wanted]
        ):
            return


def _cheapest(
    worth: NDArray[np.float64], sources: NDArray[np.bool_], targets: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Each row's move of least regret from `sources` to `targets`: regret, row, from, to."""
    rows = np.flatnonzero(sources.any(axis=1) & targets.any(axis=1))
    source = np.where(sources[rows], worth[rows], np.inf).argmin(axis=1)
    target = np.where(targets[rows], worth[rows], -np.inf).argmax(axis=1)
    return worth[rows, source] - worth[rows, target], rows, source, target


def _apply(
    plan: Plan,
    clients: NDArray[np.int64],
    who: NDArray[np.int64],
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    order: NDArray[np.int64],
) -> int:
    """Make these moves in this `order` as far as each lowers the violation; how many did."""
    chosen = who[order]
    moves = zip(
        clients[chosen].tolist(),
        source[order].tolist(),
        target[order].tolist(),
        plan.weights(clients[chosen], source[order]).tolist(),
        plan.weights(clients[chosen], target[order]).tolist(),
        strict=True,
    )
    # Plain numbers: there are many moves, and each changes what the next does.
    lower, upper = plan.problem.lower.tolist(), plan.problem.upper.tolist()
    load = plan.load.tolist()

    def outside(expert: int, change: float) -> float:
        there: float = load[expert] + change
        most: float = max(there - upper[expert], lower[expert] - there, 0.0)
        return most

    moved = 0
    for client, e, f, leaves, enters in moves:
        before = outside(e, 0.0) + outside(f, 0.0)
        if outside(e, -leaves) + outside(f, enters) < before - STILL and plan.may_move(
            client, e, f
        ):
            plan.move(client, e, f)
            load[e] -= leaves
            load[f] += enters
            moved += 1
    return moved


@dataclass(frozen=True, eq=False)
class _Changes:
    """Ways to change the loads of one expert e and each other f: moves out and in, and swaps.

    All are [E, n]. Way 0 is no change; way ``(m + 1) out + back`` moves the client at place
    ``out - 1`` of the exits e -> f, and that at ``back - 1`` of f -> e; 0 is nobody.
    """

    regret: NDArray[np.float64]
    gain: NDArray[np.float64]
    worsening: NDArray[np.float64]

    @classmethod
    def around(cls, plan: Plan, exits: Exits, e: int, free: NDArray[np.bool_]) -> _Changes:
        experts, m = exits.client.shape[1:]
        nobody = np.zeros((experts, 1))

        def with_nobody(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([nobody, values], axis=1)  # [E, 1 + m]

        regrets = []
        for client, regret in (
            (exits.client[e], exits.regret[e]),
            (exits.client[:, e], exits.regret[:, e]),
        ):
            regrets.append(with_nobody(np.where(free[client], regret, np.inf)))
        out, back = (a.ravel() for a in np.meshgrid(*[np.arange(m + 1)] * 2, indexing="ij"))
        leaves_e = with_nobody(exits.leaves[e])[:, out] - with_nobody(exits.enters[:, e])[:, back]
        enters_f = with_nobody(exits.enters[e])[:, out] - with_nobody(exits.leaves[:, e])[:, back]
        f = np.arange(experts)[:, None]
        worsening = plan.worsening(np.array([e]), -leaves_e) + plan.worsening(f, enters_f)
        regret = regrets[0][:, out] + regrets[1][:, back]
        gain = with_nobody(exits.gain[e])[:, out] + with_nobody(exits.gain[:, e])[:, back]
        # No client is in both lists: it holds one of the two only.
        return cls(regret, gain, worsening)

    def bargain(self) -> tuple[int, int, float] | None:
        """The other expert, the way and the gain of the best change that raises the quality.

        What there is to gain is priced load that is not there; it is paid for with regret. So it is
        the change of least regret among those that bring much load.
        """
        allowed = np.isfinite(self.regret) & (self.worsening <= 0) & (self.gain > 0)
        if not allowed.any():
            return None
        brought = np.where(allowed, self.gain + self.regret, -np.inf)
        most = brought.max()
        much = brought >= most - (1 - _MUCH) * abs(most)
        f, way = np.unravel_index(np.where(much, self.regret, np.inf).argmin(), much.shape)
        return int(f), int(way), float(self.gain[f, way])

    @staticmethod
    def make(plan: Plan, exits: Exits, e: int, f: int, way: int) -> list[int]:
        """Make the change `way` of experts e and f; the clients that moved."""
        out, back = divmod(way, exits.client.shape[2] + 1)
        moves = []
        if out:
            moves.append((int(exits.client[e, f, out - 1]), e, f))
        if back:
            moves.append((int(exits.client[f, e, back - 1]), f, e))
        for move in moves:
            plan.move(*move)
        return [client for client, _, _ in moves]


def _ways(plan: Plan) -> int:
    """Exits of each pair of experts to look at: the more experts, the fewer."""
    return min(_WAYS, max(1, math.isqrt(_CHANGES // plan.problem.experts) - 1))


def fit(plan: Plan, prices: NDArray[np.float64], clients: NDArray[np.int64]) -> None:
    """Lower what violation is left by moves and swaps of `clients`."""
    before = np.inf
    while STILL < plan.violation < (1 - _PROGRESS) * before:
        before = plan.violation
        exits = Exits.of(plan, prices, clients, _ways(plan))
        free = np.ones(plan.problem.clients, np.bool_)
        stuck = np.zeros(plan.problem.experts, np.bool_)
        while True:
            size = np.where(stuck, 0.0, np.abs(plan.violated))
            e = int(plan.order[size[plan.order].argmax()])
            if size[e] <= STILL:
                break
            changes = _Changes.around(plan, exits, e, free)
            falls = np.where(np.isfinite(changes.regret), -changes.worsening, 0.0)
            if falls.max() <= STILL:
                stuck[e] = True
                continue
            good = falls >= _GOOD_ENOUGH * falls.max()
            f, way = np.unravel_index(np.where(good, changes.regret, np.inf).argmin(), falls.shape)
            free[_Changes.make(plan, exits, e, int(f), int(way))] = False
            stuck[:] = False


def improve(plan: Plan, prices: NDArray[np.float64], clients: NDArray[np.int64]) -> None:
    """Raise the quality by moves and swaps of `clients` that violate no bound more."""
    problem = plan.problem
    quality = np.asarray(problem.quality[clients], np.float64)
    enough = _LEAST_GAIN * float(np.ptp(quality, axis=1) @ problem.capacity[clients])
    for _ in range(_SWEEPS):
        exits = Exits.of(plan, prices, clients, _ways(plan))
        free = np.ones(problem.clients, np.bool_)
        gained = 0.0
        for e in plan.order.tolist():
            while bargain := _Changes.around(plan, exits, e, free).bargain():
                f, way, gain = bargain
                free[_Changes.make(plan, exits, e, f, way)] = False
                gained += gain
        if gained <= enough:
            return
