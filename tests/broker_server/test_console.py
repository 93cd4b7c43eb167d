"""The console, on a terminal and in a pipe."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import rich.console

from broker_server.books.agreement import Comparison
from broker_server.console import Console, replay
from broker_server.sink import Sink
from tests.broker_server.sample_records import late_client, round_record, troubled_record

FACTS = {"name": "quickstart", "model": "digits", "devices": 2, "rounds": 3, "seed": 0}

AGREED = [Comparison("up, payload", "server received", "devices sent", 7, 7)]


class Paper(io.StringIO):
    """A stream that remembers how much of it was flushed."""

    flushed = 0

    def flush(self) -> None:
        super().flush()
        self.flushed = len(self.getvalue())


def run(sink: Sink, joined: int = 2) -> None:
    sink.started(FACTS)
    for count in range(1, joined + 1):
        sink.joined(count, 2)
    records = [round_record(1), troubled_record(2), round_record(3)]
    for record in records:
        sink.round_finished(record)
    sink.finished(records, Path("runs/quickstart"), AGREED)


def test_a_pipe_gets_one_aligned_line_a_round() -> None:
    paper = Paper()
    with Console(rich.console.Console(file=paper)) as console:
        run(console)
    lines = paper.getvalue().splitlines()
    assert lines[0] == "quickstart: digits, 2 devices, 3 rounds, seed 0"
    assert lines[1] == "2 of 2 devices are there"
    head, first, second, third = lines[2:6]
    assert head.split()[:6] == ["round", "global", "device", "loss", "up", "down"]
    assert first.split() == [
        "1", "0.5000", "0.7500", "1.250", "30.0", "KiB", "29.9", "KiB", "0.0125", "0.375", "2.50",
        "2/2", "0.00", "%", "0", "0.016",
    ]  # fmt: skip
    assert head.split()[-4:] == ["ok", "gap", "slack", "assign"]
    assert len(head) == len(first) == len(third) <= 100
    assert second[: len(head)].split()[:4] == ["2", "-", "0.7500", "-"]
    assert second[len(head) :] == (
        "  late: device-01 (no answer by the deadline of 120 s); "
        "load bounds missed by 120 samples (at best 100); 3 messages dropped; "
        "device-01 left: connection lost"
    )
    assert "Bytes by device" in lines
    assert lines[-3:] == [
        "Bytes: all counts agree within 0.1 % (at most 0.000 % apart)",
        "",
        "Everything is in runs/quickstart",
    ]
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in paper.getvalue()


def test_a_certificate_that_there_is_not_is_not_shown() -> None:
    paper = Paper()
    uncertain = replace(troubled_record(1), gap=math.nan, least_violation=math.nan)
    Console(rich.console.Console(file=paper)).round_finished(uncertain)
    line = paper.getvalue().splitlines()[-1]
    assert line.split()[11:15] == ["1/2", "-", "120", "0.016"]
    # A policy that does not aim at the bounds misses them as a matter of course.
    assert line.endswith("of 120 s); 3 messages dropped; device-01 left: connection lost")


@pytest.mark.parametrize(
    ("least", "said"),
    [
        (0.0, "by 120 samples (at best 0)"),
        (118.4, "by 120 samples (at best 118)"),
        (119.6, "by 120 samples, as few as can be"),
        (120.0, "by 120 samples, as few as can be"),
    ],
)
def test_missed_bounds_are_told_with_the_least_that_can_be(least: float, said: str) -> None:
    paper = Paper()
    record = replace(round_record(1), violated_samples=120, least_violation=least)
    Console(rich.console.Console(file=paper)).round_finished(record)
    assert paper.getvalue().rstrip().endswith(f"  load bounds missed {said}")


def test_bounds_that_are_kept_need_no_note() -> None:
    paper = Paper()
    record = replace(round_record(1), violated_samples=0, least_violation=0.0)
    Console(rich.console.Console(file=paper)).round_finished(record)
    assert "load bounds" not in paper.getvalue()


def test_a_pipe_is_flushed_with_every_round() -> None:
    paper = Paper()
    console = Console(rich.console.Console(file=paper))
    console.started({})
    console.round_finished(round_record(1))
    assert paper.flushed == len(paper.getvalue()) > 0
    assert paper.getvalue().splitlines()[-1].split()[0] == "1"


def test_a_run_that_starts_short_of_devices_says_so() -> None:
    paper = Paper()
    run(Console(rich.console.Console(file=paper)), joined=1)
    assert paper.getvalue().splitlines()[1] == "1 of 2 devices are there; starting"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> rich.console.Console:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return rich.console.Console(file=io.StringIO(), force_terminal=True, width=80, height=10)


def seen(terminal: rich.console.Console) -> list[str]:
    """The lines that stay: of each, what follows the last "erase this line", without colours."""
    assert isinstance(terminal.file, io.StringIO)
    lines = terminal.file.getvalue().split("\n")
    return [re.sub(r"\x1b\[[0-9;?]*\w", "", line.rpartition("\x1b[2K")[2]) for line in lines]


def test_a_terminal_keeps_every_round_whatever_its_height(terminal: rich.console.Console) -> None:
    with Console(terminal) as console:
        console.started({**FACTS, "rounds": 40})
        for number in range(1, 41):
            console.round_finished(round_record(number))
        console.finished([round_record(40)], Path("runs/quickstart"), ())
    lines = seen(terminal)
    rounds = [line.split()[0] for line in lines if line.endswith("2/2")]
    assert rounds == [str(number) for number in range(1, 41)]
    assert max(map(len, lines)) <= 80


def test_a_terminal_shows_progress_and_notes_on_lines_of_their_own(
    terminal: rich.console.Console,
) -> None:
    with Console(terminal) as console:
        run(console)
    text = "\n".join(seen(terminal))
    assert "\n       late: device-01 (no answer by the deadline of 120 s); load bounds " in text
    assert "\nEverything is in runs/quickstart" in text
    assert isinstance(terminal.file, io.StringIO)
    assert "0/3" in terminal.file.getvalue()


@pytest.mark.parametrize("width", [80, 99, 100, 160])
def test_the_certificate_has_a_line_of_its_own_where_columns_do_not_fit(
    terminal: rich.console.Console, width: int
) -> None:
    terminal.size = rich.console.ConsoleDimensions(width, 10)
    with Console(terminal) as console:
        console.started(FACTS)
        console.round_finished(replace(round_record(1), gap=0.0123, violated_samples=7))
    lines = [line.rstrip() for line in seen(terminal)]
    (first,) = [number for number, line in enumerate(lines) if "2/2" in line]
    if width < 100:
        assert lines[first - 1].endswith("ok") and lines[first].endswith("2/2")
        assert lines[first + 1] == "       gap 1.23 %, slack 7 samples, assigned in 0.016 s"
    else:
        assert lines[first - 1].endswith("ok     gap slack assign")
        assert lines[first].endswith("2/2  1.23 %     7  0.016")
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("gap", "slack", "told"),
    [(0.0, 0, False), (0.00004, 0, False), (math.nan, 0, False), (0.0, 1, True), (0.0001, 0, True)],
)
def test_a_narrow_terminal_tells_only_certificates_that_fall_short(
    terminal: rich.console.Console, gap: float, slack: int, told: bool
) -> None:
    with Console(terminal) as console:
        console.started(FACTS)
        console.round_finished(replace(round_record(1), gap=gap, violated_samples=slack))
    assert any(line.startswith("       gap ") for line in seen(terminal)) == told


def test_cells_that_are_too_wide_stay_apart() -> None:
    paper = Paper()
    many = replace(round_record(1), round_s=12345.67, participants=1000, answered=1000)
    Console(rich.console.Console(file=paper)).round_finished(many)
    assert paper.getvalue().splitlines()[-1].split()[10:12] == ["12345.67", "1000/1000"]


def test_leaving_the_console_gives_the_cursor_back(terminal: rich.console.Console) -> None:
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert isinstance(terminal.file, io.StringIO)
    with pytest.raises(KeyboardInterrupt), Console(terminal) as console:
        console.started(FACTS)
        assert terminal.file.getvalue().count(hide) == 1
        raise KeyboardInterrupt
    assert terminal.file.getvalue().count(show) == 1
    console.close()


def test_a_replay_prints_what_the_run_printed() -> None:
    live, again = Paper(), Paper()
    run(Console(rich.console.Console(file=live)))
    records = [round_record(1), troubled_record(2), round_record(3)]
    paper = rich.console.Console(file=again)
    replay(records, FACTS, Path("runs/quickstart"), AGREED, paper)
    assert again.getvalue() == live.getvalue().replace("2 of 2 devices are there\n", "")


def test_names_are_not_markup_and_a_crowd_is_cut_short() -> None:
    late = [late_client(f"[bold]{number}") for number in range(9)]
    paper = Paper()
    console = Console(rich.console.Console(file=paper))
    console.round_finished(replace(round_record(1), clients=late))
    notes = (
        "late: [bold]0, [bold]1, [bold]2, [bold]3 and 5 more (no answer by the deadline of 120 s)"
    )
    assert paper.getvalue().rstrip().endswith(notes)


def test_reasons_that_differ_are_left_to_the_closing_tables() -> None:
    said = ["too hot", "out of memory"]
    failed = [
        replace(late_client(f"device-{i}"), status="failed", detail=said[i]) for i in range(2)
    ]
    events = [f"device-{i}: failed: {said[i]}" for i in range(2)]
    paper = Paper()
    console = Console(rich.console.Console(file=paper))
    console.round_finished(replace(round_record(1), clients=failed, events=[*events, "and this"]))
    assert paper.getvalue().rstrip().endswith("  failed: device-0, device-1; and this")


def test_a_device_cannot_write_to_the_terminal_at_will(terminal: rich.console.Console) -> None:
    rude = replace(late_client("device-0"), detail="\x1b[2J\nround 9 went well\r")
    record = replace(round_record(1), clients=[rude], events=["device-1: \x9b2J"])
    with Console(terminal) as console:
        console.started(FACTS)
        console.round_finished(record)
        console.finished([record], Path("run"), ())
    assert isinstance(terminal.file, io.StringIO)
    assert not {"\x1b[2J", "\x9b"} & set(re.findall("\x1b\\[2J|\x9b", terminal.file.getvalue()))
    assert not any(line.startswith("round 9") for line in seen(terminal))
