"""Where kept values can be: of a matrix, the rows and columns that keep any.

A unit that is silent, or does not learn, leaves a whole row or column of a matrix unchanged, so the
kept values crowd in the others. Numbering only those places makes the gaps between them shorter.
A matrix is a tensor of two axes or more: its rows are the first axis, all others are its columns.

In bits: for each matrix that has values, tensors by name, a 0 if all its places count; or a 1, a
bit for each row, and a bit for each column (1: its places count).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.flat import places
from edge_runtime.codecs.rice import Bits
from edge_runtime.errors import WireError
from edge_runtime.tensor_blob import Shapes

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Area:
    """One tensor's places: all from `start` to `stop` of the flat array, or those of a grid."""

    start: int
    stop: int
    columns: int
    grid: tuple[Places, Places] | None = None

    @property
    def size(self) -> int:
        """How many places count."""
        if self.grid is None:
            return self.stop - self.start
        return len(self.grid[0]) * len(self.grid[1])

    @property
    def rows(self) -> int:
        return (self.stop - self.start) // self.columns


def all_areas(shapes: Shapes) -> list[Area]:
    """Of each tensor that has values all its places; `columns` is 0 where it is no matrix."""
    return [
        Area(at.start, at.stop, (at.stop - at.start) // shapes[name][0] if matrix else 0)
        for name, at in places(shapes)
        if at.stop > at.start
        for matrix in [len(shapes[name]) > 1]
    ]


def find(kept: Places, shapes: Shapes) -> list[Area]:
    """The areas that hold `kept`, ascending places of the flat array, with the least bits."""
    return [
        _grid(area, local) if area.columns and len(local) else area
        for area in all_areas(shapes)
        for local in [_inside(kept, area)]
    ]


def to_bits(areas: list[Area]) -> Bits:
    """The areas as bits."""
    parts = [np.zeros(0, np.uint8)]
    for area in areas:
        if area.grid is not None:
            parts += [np.ones(1, np.uint8)]
            parts += [_marks(area.grid[0], area.rows), _marks(area.grid[1], area.columns)]
        elif area.columns:
            parts += [np.zeros(1, np.uint8)]
    return np.concatenate(parts)


def from_bits(bits: Bits, shapes: Shapes) -> tuple[list[Area], int]:
    """The areas, and how many of `bits` they took; `WireError` if there are too few."""
    areas, used = [], 0
    for area in all_areas(shapes):
        if area.columns:
            marked = bool(bits[used : used + 1].any())
            used += 1
            if marked:
                middle, end = used + area.rows, used + area.rows + area.columns
                grid = (np.flatnonzero(bits[used:middle]), np.flatnonzero(bits[middle:end]))
                area, used = Area(area.start, area.stop, area.columns, grid), end
        areas.append(area)
    if used > len(bits):
        raise WireError("bad-body", "the rows and columns do not end")
    return areas, used


def to_numbers(kept: Places, areas: list[Area]) -> Places:
    """The numbers of `kept` among the places that count, which include them; ascending."""
    numbers, first = [np.zeros(0, np.int64)], 0
    for area in areas:
        local = _inside(kept, area)
        if area.grid is not None:
            rows, columns = area.grid
            row = np.searchsorted(rows, local // area.columns)
            local = row * len(columns) + np.searchsorted(columns, local % area.columns)
        numbers.append(local + first)
        first += area.size
    return np.concatenate(numbers)


def from_numbers(numbers: Places, areas: list[Area]) -> Places:
    """The places that have these numbers, ascending; each is below the areas' sizes together."""
    kept, first = [np.zeros(0, np.int64)], 0
    for area in areas:
        low, high = np.searchsorted(numbers, (first, first + area.size))
        local = numbers[low:high] - first
        if area.grid is not None and len(local):
            rows, columns = area.grid
            row, column = np.divmod(local, len(columns))
            local = rows[row] * area.columns + columns[column]
        kept.append(local + area.start)
        first += area.size
    return np.concatenate(kept)


def _inside(kept: Places, area: Area) -> Places:
    """Those of `kept` that are in the area's tensor, counted from its begin."""
    low, high = np.searchsorted(kept, (area.start, area.stop))
    return kept[low:high] - area.start


def _grid(area: Area, local: Places) -> Area:
    """`area` without rows and columns that keep nothing, if that saves more bits than it takes."""
    rows, columns = np.unique(local // area.columns), np.unique(local % area.columns)
    fewer = Area(area.start, area.stop, area.columns, (rows, columns))
    # With d times fewer places, each gap is log2(d) bits shorter.
    saved = len(local) * math.log2(area.size / fewer.size)
    return fewer if saved > area.rows + area.columns else area


def _marks(places: Places, size: int) -> Bits:
    marks = np.zeros(size, np.uint8)
    marks[places] = 1
    return marks
