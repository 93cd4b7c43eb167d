"""Timing variants of one step fairly: each in its own process, taking turns.

Every variant meets the machine's moods alike, and none shares threads, caches of a library or a
heated-up allocator with another.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from edge_runtime.errors import FlexmoeError

TURNS = 15
TURN_S = 0.15  # how long one turn lasts, about
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Worker:
    """A process that takes steps when it is told to; `argv` must end up in `serve`."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._name = " ".join(argv)
        self._process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD},
        )

    def turn(self, steps: int) -> list[float]:
        """Take `steps` steps; their times in seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            errors = self._process.communicate()[1].strip().splitlines()
            raise FlexmoeError(f"{self._name} ended: {errors[-1] if errors else 'without a word'}")
        times: list[float] = json.loads(answer)
        return times

    def close(self) -> None:
        """Let it end, and wait for it."""
        self._process.communicate()


def serve(step: Callable[[], object]) -> None:
    """Be a worker: read a number of steps, take them, write their times, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began_s = time.perf_counter()
            step()
            times.append(time.perf_counter() - began_s)
        print(json.dumps(times), file=answers, flush=True)


def medians_s(variants: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The median seconds of a step of each variant, given as its worker's arguments."""
    workers = {name: Worker(argv) for name, argv in variants.items()}
    steps = {}
    for name, worker in workers.items():
        worker.turn(3)  # warms up
        steps[name] = max(1, round(TURN_S / statistics.median(worker.turn(3))))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(TURNS):
        for name, worker in workers.items():
            times[name] += worker.turn(steps[name])
    for worker in workers.values():
        worker.close()
    return {name: statistics.median(values) for name, values in times.items()}
