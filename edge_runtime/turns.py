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
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from edge_runtime.errors import FlexmoeError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Pace:
    """How many `turns` each variant has, and how many seconds each lasts, about."""

    turns: int
    turn_s: float


PACE = Pace(turns=15, turn_s=0.15)


class Worker:
    """A process that takes steps when it is told to; `argv` must end up in `serve`."""

    def __init__(self, argv: Sequence[str], threads: int = 1) -> None:
        self._name = " ".join(argv)
        # A file takes whatever it prints; a pipe that nobody reads would stop it when full.
        self._printed = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let it end, and wait for it; after an error it is not asked."""
        if error is not None:
            self._process.kill()
        self._process.communicate()
        self._printed.close()

    def turn(self, steps: int) -> list[float]:
        """Take `steps` steps; their times in seconds. `FlexmoeError` if the process ends."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._printed.seek(0)
            printed = self._printed.read().strip().splitlines()
            raise FlexmoeError(
                f"{self._name} ended: {printed[-1] if printed else 'without a word'}"
            )
        times: list[float] = json.loads(answer)
        return times


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


def medians_s(
    variants: Mapping[str, Sequence[str]], threads: int = 1, pace: Pace = PACE
) -> dict[str, float]:
    """The median seconds of a step of each variant, given as its worker's arguments.

    `threads` is what the libraries in the workers are told; none starts more unasked.
    """
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(argv, threads)) for name, argv in variants.items()
        }
        steps = {}
        for name, worker in workers.items():
            worker.turn(3)  # warms up
            steps[name] = max(1, round(pace.turn_s / statistics.median(worker.turn(3))))
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(pace.turns):
            for name, worker in workers.items():
                times[name] += worker.turn(steps[name])
    return {name: statistics.median(values) for name, values in times.items()}
