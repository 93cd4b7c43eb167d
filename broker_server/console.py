"""The console: a run as it goes, one line a round.

On a terminal the lines scroll up above a progress bar, so any number of rounds fits a window of any
height. Elsewhere (a pipe, a log file) they are plain text, flushed line by line. Both have the same
columns.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import rich.console
from rich.console import RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from broker_server.books.agreement import Agreement
from broker_server.books.run_bytes import RunBytes
from broker_server.figures import figure, human_bytes
from broker_server.record import RoundRecord
from broker_server.sink import Facts
from broker_server.tables import render

_PLAIN_WIDTH = 100

# Title and width of each column. Accuracies are of the global model, and the mean of the devices'
# own; "ok" is how many answers counted, of how many devices that had work.
_COLUMNS = (
    ("round", 5),
    ("global", 6),
    ("device", 6),
    ("loss", 6),
    ("up", 10),
    ("down", 10),
    ("load CV", 7),
    ("usage CV", 8),
    ("seconds", 7),
    ("ok", 5),
)
# The assignment's certificate: how far from the best it can be, the samples by which it misses its
# load bounds, and the seconds that it took.
_CERTIFICATE = (("gap", 7), ("slack", 5), ("assign", 6))
_SHOWN_GAP = 0.00005  # 0.01 % as it is shown
_WIDTH = sum(width + 1 for _, width in _COLUMNS + _CERTIFICATE) - 1


class Console:
    """A `Sink` that prints. Use it as a context manager: leaving it gives the terminal back."""

    def __init__(self, terminal: rich.console.Console | None = None) -> None:
        self._terminal = terminal or rich.console.Console(highlight=False)
        self._live = self._terminal.is_terminal
        self._facts: Facts = {}
        self._expected = 0
        self._joined = 0
        self._rows = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("rounds,"),
            TimeElapsedColumn(),
            TextColumn("passed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._terminal,
            refresh_per_second=2,  # the devices need the processor more
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the progress bar and show the cursor again; more calls do nothing."""
        if self._live:
            self._progress.stop()

    def started(self, facts: Facts) -> None:
        """Say what runs."""
        self._facts = facts
        self._line(_headline(facts), "bold")
        if self._live:
            self._task = self._progress.add_task("waiting for devices", total=facts.get("rounds"))
            self._progress.start()

    def note(self, text: str) -> None:
        """Say it, on a line of its own."""
        self._line(text)

    def joined(self, count: int, expected: int) -> None:
        """Say how many devices are there; a pipe hears of it when all are."""
        self._joined, self._expected = count, expected
        self._describe(f"{count} of {expected} devices are there")
        if count == expected and not self._rows:
            self._line(f"{count} of {expected} devices are there")

    def round_finished(self, record: RoundRecord) -> None:
        """One line for the round; a note where it did not go to plan."""
        if not self._rows:
            if self._joined < self._expected:
                self._line(f"{self._joined} of {self._expected} devices are there; starting")
            columns = _COLUMNS if self._narrow else _COLUMNS + _CERTIFICATE
            self._line(_row([title for title, _ in columns], columns), "bold")
        self._rows += 1
        line = _row(_cells(record), _COLUMNS)
        gap, slack, seconds = certificate = _certificate(record)
        if self._narrow:
            if _is_worth_a_line(record):
                self._line(line)
                line = f"       gap {gap}, slack {slack} samples, assigned in {seconds} s"
        else:
            line += f" {_row(certificate, _CERTIFICATE)}"
        notes = "; ".join(_notes(record))
        if self._live:
            self._line(line)
            if notes:
                self._terminal.print(Padding(Text(notes, style="yellow"), (0, 0, 0, 7)))
        else:
            self._line(f"{line}  {notes}".rstrip())
        if self._task is not None:
            self._progress.update(self._task, completed=record.round)
        last = record.round == self._facts.get("rounds")
        self._describe("closing" if last else f"round {record.round + 1}")

    def finished(
        self,
        records: Sequence[RoundRecord],
        directory: Path,
        agreement: Agreement,
        run: RunBytes | None = None,
        facts: Facts | None = None,
    ) -> None:
        """The closing tables, and where the run's files are."""
        self.close()
        self._facts = self._facts if facts is None else facts
        print_tables(render(records, self._facts, agreement, run), self._terminal)
        self._line("")
        self._line(f"Everything is in {directory}")

    @property
    def _narrow(self) -> bool:
        """Whether the certificate needs a line of its own, where it has something to say."""
        return self._live and self._terminal.width < _WIDTH

    def _line(self, text: str, style: str = "") -> None:
        if self._live:
            self._terminal.print(Text(text, style=style))
        else:
            print(text, file=self._terminal.file, flush=True)

    def _describe(self, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, description=text)


def print_tables(tables: Sequence[RenderableType], terminal: rich.console.Console) -> None:
    """Print tables: on a terminal as wide as it is, elsewhere as plain text of 100 columns."""
    if terminal.is_terminal:
        terminal.print(*tables, sep="\n")
        return
    paper = rich.console.Console(file=io.StringIO(), width=_PLAIN_WIDTH)
    with paper.capture() as capture:
        paper.print(*tables, sep="\n")
    for line in capture.get().splitlines():
        print(line.rstrip(), file=terminal.file, flush=True)


def replay(
    records: Sequence[RoundRecord],
    facts: Facts,
    directory: Path,
    agreement: Agreement = (),
    terminal: rich.console.Console | None = None,
    lines: Sequence[RoundRecord] | None = None,
) -> None:
    """Print a finished run as it was printed when it ran.

    `lines`: the records as they were when each round finished; None: as they are.
    """
    with Console(terminal) as console:
        console.started(facts)
        for record in records if lines is None else lines:
            console.round_finished(record)
        console.finished(records, directory, agreement)


def _headline(facts: Facts) -> str:
    """``quickstart: digits, 8 experts, ...``, from the facts that are there."""
    forms = (
        ("model", "{}"),
        ("experts", "{} experts"),
        ("devices", "{} devices"),
        ("partition", "{}"),
        ("policy", "{}"),
        ("rounds", "{} rounds"),
        ("seed", "seed {}"),
        ("broker", "broker {}"),
    )
    said = [form.format(facts[key]) for key, form in forms if key in facts]
    return f"{facts.get('name', 'run')}: {', '.join(said)}"


def _cells(record: RoundRecord) -> list[str]:
    return [
        str(record.round),
        figure(record.global_accuracy),
        figure(record.device_accuracy),
        figure(record.loss, 3),
        human_bytes(record.uplink_bytes),
        human_bytes(record.downlink_bytes),
        figure(record.load_cv),
        figure(record.usage_cv, 3),
        figure(record.round_s, 2),
        f"{record.answered}/{record.participants}",
    ]


def _row(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    """The cells in their columns, a blank between them."""
    return " ".join(cell.rjust(width) for cell, (_, width) in zip(cells, columns, strict=True))


def _is_worth_a_line(record: RoundRecord) -> bool:
    """Whether the assignment may not be the best, or misses bounds."""
    return record.violated_samples > 0 or record.gap >= _SHOWN_GAP


def _certificate(record: RoundRecord) -> list[str]:
    """The gap in percent, the slack in samples, the seconds."""
    gap = "-" if math.isnan(record.gap) else f"{100 * record.gap:.2f} %"
    return [gap, str(record.violated_samples), figure(record.assign_s, 3)]


def _notes(record: RoundRecord) -> list[str]:
    """What did not go to plan: missed bounds, devices left out, dropped messages, events."""
    by_status: dict[str, dict[str, str]] = {}
    for client in record.clients:
        if client.status != "ok":
            by_status.setdefault(client.status, {})[client.client] = client.detail
    notes = [f"{status}: {_some(details)}" for status, details in by_status.items()]
    if record.violated_samples and not math.isnan(record.least_violation):  # else: not its aim
        least = round(record.least_violation)
        proven = (
            f" (at best {least})" if least < record.violated_samples - 1 else ", as few as can be"
        )
        notes.append(f"load bounds missed by {record.violated_samples} samples{proven}")
    if record.drops:
        notes.append(f"{sum(record.drops.values())} messages dropped")
    told = {f"{c.client}: {c.status}: {c.detail}" for c in record.clients if c.status != "ok"}
    return notes + [event for event in record.events if event not in told]


def _some(details: Mapping[str, str], most: int = 4) -> str:
    """The names, and the detail if it is the same for all; the closing tables have the others."""
    names, reasons = list(details), set(details.values()) - {""}
    more = f" and {len(names) - most} more" if len(names) > most else ""
    why = f" ({reasons.pop()})" if len(reasons) == 1 else ""
    return ", ".join(names[:most]) + more + why
