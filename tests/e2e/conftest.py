"""Fixtures of the end-to-end tests: an experiment, a workshop for processes, and finished runs.

Starting takes most of a run's time, so finished runs are shared by the session: `quiet_run` of four
devices, `pair_run` of two. All programs go to one folder that is empty at first.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Run, Workshop, fingerprint, settings

# Two devices, and more rounds: for runs that something happens to.
PAIR_ROUNDS = 14
PAIR: dict[str, object] = {"data.devices": 2, "rounds": PAIR_ROUNDS}
QuietRun = Callable[[str], Run]
EXPERIMENT = """
name = "e2e"
seed = 3
rounds = 3
[data]
dataset = "digits"
devices = 4
partition = "dirichlet(1.0)"
[model]
experts = 8
experts_per_device = 2
[train]
epochs = 2
learning_rate = 0.1
"""


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment file of these tests: four devices, three rounds."""
    path = tmp_path_factory.mktemp("experiment") / "e2e.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs are kept; the session's first run exports them."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def workshop(tmp_path: Path, cache: Path) -> Iterator[Workshop]:
    """Starts `flexmoe` commands; whatever is left at the test's end is killed."""
    workshop = Workshop(tmp_path / "commands", uuid.uuid4().hex, cache)
    yield workshop
    workshop.clear()


@pytest.fixture(scope="session")
def finished_run(
    experiment: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Run]]:
    """Runs the experiment once for each set of options, and gives what that run left."""
    runs: dict[tuple[tuple[str, object], ...], Run] = {}
    workshops: list[Workshop] = []

    def get(changes: dict[str, object]) -> Run:
        key = tuple(changes.items())
        if key not in runs:
            folder = tmp_path_factory.mktemp("run")
            workshop = Workshop(folder, uuid.uuid4().hex, cache)
            workshops.append(workshop)
            before = fingerprint(cache)
            end = workshop.call("run", experiment, *settings(changes), out=folder / "out")
            left = workshop.left()
            runs[key] = Run(folder / "out", end, left, cache, before, fingerprint(cache))
        return runs[key]

    yield get
    for workshop in workshops:
        workshop.clear()


@pytest.fixture(scope="session")
def quiet_run(finished_run: Callable[..., Run]) -> QuietRun:
    """The experiment as it is, on a broker of the kind given, with nobody disturbing it."""
    return lambda kind: finished_run({"broker": kind})


@pytest.fixture(scope="session")
def pair_run(finished_run: Callable[..., Run]) -> Run:
    """Two devices and more rounds: what runs that are disturbed must come to as well."""
    return finished_run(PAIR)
