"""Profiles as text for people, at most 100 columns wide; tables as wide as their names ask."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from device_profiles.catalogue.board import Board
from device_profiles.catalogue.figure import Figure
from device_profiles.catalogue.link_class import LinkClass

_WIDTH = 100


def describe(board: Board) -> str:
    """A board: every figure with its unit, its value and where it is from."""
    about = f"{board.architecture}, usual link {board.link}"
    if not board.supported:
        about += f"; flexmoe does not run on it: {board.unsupported_because}"
    return _described(board.name, board.title, about, board.figures)


def describe_link(link: LinkClass) -> str:
    """A class of links: every figure with its unit, its value and where it is from."""
    about = (
        f"sending takes {_short(link.up_joules_per_byte * 1e6)} µJ a byte, receiving "
        f"{_short(link.down_joules_per_byte * 1e6)} µJ a byte"
    )
    return _described(link.name, link.title, about, link.figures)


def listing(boards: Mapping[str, Board], links: Mapping[str, LinkClass]) -> str:
    """A line for each board and each class of links; below, why flexmoe does not run on some."""
    rows = [
        (
            board.name + ("" if board.supported else "*"),
            board.title,
            f"{_short(board.cores.value)} x {_short(board.clock_mhz.value)} MHz",
            _short(board.ram_mib.value),
            _short(board.memory_mib.value),
            _short(board.integer_mips.value),
            _short(board.gemm_gflops.value),
            board.link,
        )
        for board in boards.values()
    ]
    heads = ("board", "", "cores", "RAM MiB", "for us", "7-zip", "GEMM", "link")
    lines = _columns(heads, rows, "<<>>>>><")
    reasons: dict[str, list[str]] = {}
    for board in boards.values():
        if not board.supported:
            reasons.setdefault(board.unsupported_because, []).append(board.name)
    for reason, names in reasons.items():
        note = f"* flexmoe does not run on {', '.join(names)}: {reason}"
        lines += textwrap.wrap(note, _WIDTH, subsequent_indent="  ")
    lines += textwrap.wrap(
        "for us: MiB that are left for a device of ours; 7-zip: MIPS of one core; GEMM: GFLOP/s of "
        "one core, fp32",
        _WIDTH,
    )
    return "\n".join([*lines, "", *_link_lines(links)])


def _link_lines(links: Mapping[str, LinkClass]) -> list[str]:
    rows = [
        (
            link.name,
            link.title,
            _rate(link.up_rate),
            _rate(link.down_rate),
            f"{_short(link.latency_s.value * 1e3)} ms",
            f"{_short(link.loss.value * 100)} %",
            _short(link.up_joules_per_byte * 1e6),
            _short(link.down_joules_per_byte * 1e6),
        )
        for link in links.values()
    ]
    heads = ("link", "", "up bit/s", "down bit/s", "one way", "loss", "µJ/B up", "down")
    return _columns(heads, rows, "<<>>>>>>")


def _described(name: str, title: str, about: str, figures: Mapping[str, Figure]) -> str:
    lines = [*textwrap.wrap(f"{name}: {title}", _WIDTH), *textwrap.wrap(about, _WIDTH), ""]
    values = {label: f"{figure.value:,.10g}" for label, figure in figures.items()}
    left, middle = max(map(len, values)), max(map(len, values.values()))
    for label, figure in figures.items():
        head = f"{label:<{left}}  {values[label]:>{middle}}  "
        indent = " " * len(head)
        lines += textwrap.wrap(figure.said, _WIDTH, initial_indent=head, subsequent_indent=indent)
    return "\n".join(lines)


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]], aligned: str) -> list[str]:
    """Lines of cells in columns, two spaces apart."""
    table = [heads, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)
        ).rstrip()
        for row in table
    ]


def _rate(figure: Figure) -> str:
    value = figure.value
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_short(value / size)} {unit}"
    return _short(value)


def _short(value: float) -> str:
    """A few digits, without an exponent."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}".rstrip("0").rstrip(".")
