"""The closing table of boards and links, at most 100 columns wide, and lines that say why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from broker_server.boards import BoardRow
from broker_server.figures import percent, plain_table, titled

_COLUMNS = (
    *("n", "asked", "last", "mean", "bound by", "train s", "fetch s", "CPU s", "thr."),
    *("MiB", "kills", "left"),
)


def board_table(rows: Sequence[BoardRow]) -> list[RenderableType]:
    """The table, and for each board what bound it, with the newest figures."""
    title = "Devices by board (experts: asked, given last and on average; thr.: CPU throttled)"
    table = plain_table(title, "board")
    table.padding = (0, 1, 0, 0)
    table.add_column("link", overflow="fold")
    for name in _COLUMNS:
        folds = name == "bound by"
        justify, overflow = ("left", "fold") if folds else ("right", "ellipsis")
        table.add_column(name, justify=justify, overflow=overflow, no_wrap=not folds)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    return [table, *_reasons(rows)]


def _cells(row: BoardRow) -> list[str]:
    return [
        row.board or "-",
        row.link or "-",
        str(row.devices),
        f"{row.asked:.3g}",
        f"{row.given_last:.3g}",
        f"{row.given:.2f}",
        ", ".join(f"{limit} {count}" for limit, count in row.limits.items()),
        _number(row.train_s),
        _number(row.fetch_s),
        _number(row.cpu_s),
        "-" if row.throttled_share is None else percent(row.throttled_share, 0),
        _memory(row),
        str(row.kills),
        str(row.left),
    ]


def _reasons(rows: Sequence[BoardRow]) -> list[Table]:
    """A line for each board, and link where it has several, and what bound it."""
    boards = Counter(row.board for row in rows)
    lines = [
        f"{_name(row, boards[row.board] > 1)}: {limit}: {why}"
        for row in rows
        for limit, why in row.why.items()
    ]
    if not lines:
        return []
    table = titled("What bound them, in the newest figures", show_header=False)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(Text(line))
    return [table]


def _name(row: BoardRow, by_link: bool) -> str:
    parts = [row.board, row.link if by_link or not row.board else ""]
    return ", ".join(filter(None, parts)) or "devices"


def _memory(row: BoardRow) -> str:
    if row.memory_peak_mib is None:
        return "-"
    limit = "" if row.memory_limit_mib is None else f"/{row.memory_limit_mib:.0f}"
    return f"{row.memory_peak_mib:.0f}{limit}"


def _number(value: float | None) -> str:
    """About three digits: a column has room for no more."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
