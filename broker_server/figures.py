"""Numbers and plain tables for people."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text


def human_bytes(count: int) -> str:
    """A number of bytes for people: ``512 B``, ``3.4 KiB``, ``12.0 MiB``."""
    if abs(count) < 1024:
        return f"{count} B"
    size = count / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if abs(size) < 1023.95:  # what would round up to 1024.0
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """A time for people: ``4 ms``, ``2.5 s``, ``26 min``, ``44 h``, ``12 days``."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else f"{1000 * seconds:.0f} ms"
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < size * most:
            return (
                f"{seconds / size:.1f} {unit}"
                if seconds < 10 * size
                else (f"{seconds / size:.0f} {unit}")
            )
    return f"{seconds / 86400:.0f} days"


def human_joules(joules: float) -> str:
    """An energy for people: ``12 µJ``, ``3.4 mJ``, ``56 J``."""
    for unit, size in (("J", 1.0), ("mJ", 1e-3)):
        if joules >= 0.9995 * size:
            return (
                f"{joules / size:.1f} {unit}"
                if joules < 10 * size
                else (f"{joules / size:.0f} {unit}")
            )
    return f"{joules / 1e-6:.2g} µJ" if joules < 9.95e-5 else f"{joules / 1e-6:.0f} µJ"


def figure(value: float | None, digits: int = 4) -> str:
    """A number for people; ``-`` where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(share: float, digits: int = 2) -> str:
    """A share for people; ``-`` where there is none."""
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def titled(title: str, show_header: bool = True) -> Table:
    """A plain table without columns, set off by an empty line; the title may be wider."""
    return Table(
        title=Text(f"\n{title}", style="bold", no_wrap=True, overflow="ignore"),
        title_justify="left",
        show_header=show_header,
        box=None,
        pad_edge=False,
    )


def plain_table(title: str, *columns: str) -> Table:
    """A plain table; the first column is text, the others numbers."""
    table = titled(title)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table
