"""Workers take steps in turns; what they print, or how they end, never stops the measuring."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge_runtime.errors import FlexmoeError
from edge_runtime.turns import THREADS, Pace, Worker, medians_s

SERVE = "import os, sys, time\nfrom edge_runtime.turns import serve\n"
QUICK = Pace(turns=3, turn_s=0.002)


def worker(step: str) -> list[str]:
    """The arguments of a worker whose step is this statement."""
    return ["-c", f"{SERVE}def step():\n    {step}\nserve(step)"]


def test_a_turn_gives_the_time_of_each_step() -> None:
    with Worker(worker("time.sleep(0.002)")) as process:
        began_s = time.perf_counter()
        times = [process.turn(steps) for steps in (2, 1)]
        passed_s = time.perf_counter() - began_s
    assert [len(each) for each in times] == [2, 1]
    assert all(taken_s >= 0.002 for each in times for taken_s in each)
    assert sum(sum(each) for each in times) <= passed_s


def test_variants_take_turns_for_about_the_time_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write = f"open({str(log)!r}, 'a').write"
    variants = {
        "slow": worker(f"time.sleep(0.004); {write}('s')"),
        "fast": worker(f"time.sleep(0.0001); {write}('f')"),
    }
    medians = medians_s(variants, pace=QUICK)
    assert list(medians) == ["slow", "fast"] and medians["slow"] > 0.004 > 0.0001
    # Each warms up and is timed in 3 steps; then there are `turns` of it, of one slow step each.
    taken = log.read_text()
    assert taken.startswith("s" * 6 + "f" * 6 + "sf") and taken.count("sf") == 4
    assert taken.count("s") == 6 + QUICK.turns


def test_what_a_worker_prints_neither_mixes_with_its_answers_nor_stops_it() -> None:
    chatter = "print('o' * 200_000); sys.stderr.write('e' * 200_000); os.write(1, b'[1]\\n')"
    with Worker(worker(chatter)) as process:
        assert [len(process.turn(2)) for _ in range(2)] == [2, 2]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("raise ValueError('it is broken')", "ended: ValueError: it is broken$"),
        ("os._exit(3)", "ended: without a word$"),
    ],
)
def test_a_worker_that_ends_is_one_line(step: str, says: str) -> None:
    with Worker(worker(step)) as process, pytest.raises(FlexmoeError, match=says) as caught:
        process.turn(1)
    # Its name is the command; here that is a program of several lines.
    assert "\n" not in str(caught.value).rpartition("serve(step)")[2]


def test_an_error_ends_every_worker(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    idle = ["-c", f"{SERVE}serve(lambda: None)\nopen({str(alive)!r}, 'w')"]
    with pytest.raises(FlexmoeError, match="ended"):
        medians_s({"idle": idle, "broken": worker("os._exit(1)")}, pace=QUICK)
    assert not alive.exists(), "it was asked to end and did, instead of being killed"


def test_libraries_are_told_how_many_threads_to_take() -> None:
    check = f"assert {{os.environ[name] for name in {THREADS}}} == {{'3'}}"
    with Worker(worker(check), threads=3) as process:
        assert len(process.turn(1)) == 1
