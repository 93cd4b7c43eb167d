"""The load-balanced assignment of FLEX-MoE.

Paper: Zhang et al., "FLEX-MoE: Federated Mixture-of-Experts with Load-balanced Expert Assignment",
arXiv 2512.23070::

    maximize   sum_{c,e} Q[c,e] X[c,e]
    subject to sum_e X[c,e] = k_c,   lower[e] <= sum_c n_c X[c,e] <= upper[e],   X in {0, 1}
"""

from __future__ import annotations

from broker_server.assignment.exact import WORK_LIMIT, solve
from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment


def assign(problem: Problem, work_limit: float = WORK_LIMIT) -> Assignment:
    """The assignment of least violation, then most quality."""
    return solve(problem, work_limit)
