"""Who trains what is read from a file: the assignment that `flexmoe assign` wrote, or one's own.

From no paper. It keeps an assignment the same over the rounds, and lets another program decide.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_server.assignment.problem import Problem
from broker_server.assignment.result import Assignment
from edge_runtime.errors import ConfigError, FleetError


def assign(problem: Problem, file: str | Path) -> Assignment:
    """The experts that the file gives each client; never more than `k_c`, maybe fewer.

    file: a `.npy` array [clients of the whole fleet, E] of booleans, or of 0 and 1. A client's row
    is its place. Of a row with more than `k_c` experts those of most quality stay, ties broken by
    the seed. Raises `ConfigError` for a file that is not such an array or has an empty row, and
    `FleetError` for a client without a row. A file that changes is read again.
    """
    started = time.perf_counter()
    table = read(file, problem.experts)
    places = np.arange(problem.clients) if problem.places is None else problem.places
    if places.max() >= len(table):
        raise FleetError(
            f"fixed: {file} has {len(table)} rows, none for client number {places.max()} (the "
            "first is 0); give a file with one row for each client of the fleet"
        )
    rng = np.random.default_rng(problem.seed)
    X = table[places]
    for client in np.flatnonzero(X.sum(axis=1) > problem.capacity):
        listed = np.flatnonzero(X[client])
        lottery = rng.random(len(listed))
        ranking = np.lexsort((lottery, -problem.quality[client, listed]))
        X[client, listed[ranking[problem.capacity[client] :]]] = False
    return Assignment.of(problem, X, solver="fixed", solve_s=time.perf_counter() - started)


def read(file: str | Path, experts: int) -> NDArray[np.bool_]:
    """The table [clients, experts] in the file; `ConfigError` if it is not such an array."""
    path = Path(file)
    try:
        status = path.stat()
        table = _read(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ConfigError(
            f"fixed: cannot read the assignment {path}: {error.strerror or error}; write it with "
            "`flexmoe assign`, or give the path of another file"
        ) from None
    if table.shape[1] != experts:
        raise ConfigError(
            f"fixed: {path} is for {table.shape[1]} experts, the model has {experts}; "
            "give a file with one column an expert"
        )
    return table


@lru_cache(maxsize=1)
def _read(path: Path, modified_ns: int, size: int) -> NDArray[np.bool_]:
    """The table [clients, E] in the file, read again when the file's time or size is another."""
    try:
        with path.open("rb") as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy has no one error for a damaged header
        raise ConfigError(
            f"fixed: {path} is no .npy array of numbers ({_line(error)}); write it with "
            "`flexmoe assign` or numpy.save"
        ) from None
    if array.ndim != 2 or 0 in array.shape:
        raise ConfigError(
            f"fixed: {path} must be [clients, experts] with at least one of each, not of shape "
            f"{array.shape}"
        )
    if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
        raise ConfigError(
            f"fixed: {path} must hold booleans, or 0 and 1 only, not other values of type "
            f"{array.dtype}; 1 gives the expert to the client"
        )
    table = array.astype(np.bool_)
    empty = np.flatnonzero(~table.any(axis=1))
    if len(empty):
        raise ConfigError(
            f"fixed: {path} gives no expert to client number {empty[0]} (the first is 0); every "
            "row needs at least one"
        )
    table.setflags(write=False)
    return table


def _line(error: Exception) -> str:
    """What the error says, on one line that is not long."""
    return " ".join(str(error).split())[:120]
