"""The same seed gives the same run: on another broker, by hand, and across a kill."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.conftest import require_broker
from tests.e2e.conftest import PAIR, PAIR_ROUNDS, QuietRun
from tests.e2e.processes import KERNEL_S, Run, Workshop, learned, read_report, select, settings


def test_the_same_seed_gives_the_same_run_on_any_broker(quiet_run: QuietRun) -> None:
    require_broker("mosquitto")
    first, second = quiet_run("mosquitto"), quiet_run("amqtt")
    assert learned(first.report) == learned(second.report)
    for query in (
        "SELECT round, client, expert, usage, loss, quality FROM assignments ORDER BY 1, 2, 3",
        "SELECT round, client, samples, device_accuracy FROM clients ORDER BY 1, 2",
    ):
        assert first.select(query) == second.select(query)
    assert_same_weights(first.directory, second.directory)


def test_another_seed_gives_another_run(
    quiet_run: QuietRun, finished_run: Callable[..., Run]
) -> None:
    first = learned(quiet_run("amqtt").report)[0]
    other = learned(finished_run({"broker": "amqtt", "seed": 4, "rounds": 1}).report)[0]
    for key in ("assignments", "global_accuracy", "device_accuracy", "loss", "load"):
        assert first[key] != other[key], key


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    workshop: Workshop, experiment: Path, pair_run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shorter = {**PAIR, "rounds": PAIR_ROUNDS - 1}  # a resumed run may also be given more rounds
    killed = workshop.start("run", experiment, *settings(shorter), out=out)
    killed.wait_for(lambda: killed.rounds() >= 2)
    killed.signal(signal.SIGKILL)
    assert killed.finish().code == -signal.SIGKILL
    # Devices and broker end by themselves, without anybody to tell them.
    assert workshop.left(KERNEL_S) == []

    stored = select(out, "SELECT * FROM rounds ORDER BY round")
    assert 2 <= len(stored) < PAIR_ROUNDS - 1
    resumed = workshop.call("run", experiment, *settings(PAIR), "--resume", out=out)
    assert (resumed.code, resumed.err) == (0, "")
    assert workshop.left() == []
    # What was finished is kept as it was, and what comes after is what would have come.
    assert select(out, "SELECT * FROM rounds ORDER BY round")[: len(stored)] == stored
    assert learned(read_report(out)) == learned(pair_run.report)
    assert_same_weights(out, pair_run.directory)


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = (np.load(run / "model" / "weights.npz") for run in (first, second))
    assert sorted(one.files) == sorted(other.files)
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
