"""Experts that a device's budget of bytes would rather not bring to it, exchanged for others.

Policies take such pairs last (`broker_server.round_problem`), but load bounds stand above quality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment import Assignment, Problem
from broker_server.budget import Allowance
from broker_server.capacity import Capacity

Dear = Mapping[str, NDArray[np.bool_]]
"""By client that has a budget: which experts [E] are dear."""


def dear_pairs(given: Mapping[str, Capacity], allowances: Mapping[str, Allowance]) -> Dear:
    """What is dear where each client is given so many experts."""
    return {c: allowances[c].dear(held.k) for c, held in given.items() if c in allowances}


def without_dear(
    assignment: Assignment,
    problem: Problem,
    clients: Sequence[str],
    allowances: Mapping[str, Allowance],
    dear: Dear,
) -> Assignment:
    """The `assignment` to `clients` without dear pairs, as far as they can be exchanged.

    For an expert that another client gives for it, so that each has as many clients as before: that
    of the client with the number of samples that is nearest, then the cheapest. If there is none,
    for the cheapest of all; but an expert that nobody else trains in the round stays, or it might
    never be trained.
    """
    X, none = assignment.X.copy(), np.zeros(problem.experts, np.bool_)
    is_dear = np.array([dear.get(client, none) for client in clients])
    for i, expert in np.argwhere(X & is_dear):
        if not X[i, expert]:  # given to another one meanwhile
            continue
        cost = np.array(allowances[clients[i]].each_bytes)
        takes = ~X[i] & ~is_dear[i]
        gives = X & takes
        gives[X[:, expert] | is_dear[:, expert]] = False
        givers, given = np.nonzero(gives)
        if len(givers):
            apart = np.abs(problem.samples[givers] - problem.samples[i])
            best = np.lexsort((givers, cost[given], apart))[0]
            X[givers[best], given[best]], X[givers[best], expert] = False, True
            X[i, expert], X[i, given[best]] = False, True
        elif takes.any() and X[:, expert].sum() > 1:
            X[i, expert], X[i, np.argmin(np.where(takes, cost, np.inf))] = False, True
    if np.array_equal(X, assignment.X):
        return assignment
    return Assignment.of(  # which no longer has the policy's bound
        problem,
        X,
        solver=assignment.solver,
        solve_s=assignment.solve_s,
        violation_bound=assignment.violation_bound,
    )
