"""Numbers of places and back, against a plain list of all the places that count."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.codecs import areas
from edge_runtime.codecs.flat import total
from edge_runtime.errors import WireError
from edge_runtime.tensor_blob import Shapes

_shapes = st.dictionaries(
    st.text(min_size=1, max_size=3),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    max_size=4,
)


def countable(held: list[areas.Area]) -> list[int]:
    """All places that count, in order."""
    found: list[int] = []
    for area in held:
        if area.grid is None:
            found += range(area.start, area.stop)
        else:
            pairs = itertools.product(*(axis.tolist() for axis in area.grid))
            found += [area.start + row * area.columns + column for row, column in pairs]
    return found


@given(_shapes, st.data())
def test_kept_places_have_numbers(shapes: Shapes, data: st.DataObject) -> None:
    chosen = st.sets(st.integers(0, total(shapes) - 1)) if total(shapes) else st.just(set[int]())
    kept = np.array(sorted(data.draw(chosen)), np.int64)
    held = areas.find(kept, shapes)
    count = countable(held)
    assert sum(area.size for area in held) == len(count)
    numbers = areas.to_numbers(kept, held)
    assert [count[number] for number in numbers] == kept.tolist()
    np.testing.assert_array_equal(areas.from_numbers(numbers, held), kept)

    bits = areas.to_bits(held)
    again, used = areas.from_bits(np.append(bits, np.ones(9, np.uint8)), shapes)
    assert used == len(bits)
    assert countable(again) == count
    for size in range(len(bits)):
        with pytest.raises(WireError, match="do not end"):
            areas.from_bits(bits[:size], shapes)


def test_silent_rows_and_columns_are_left_out() -> None:
    matrix = np.zeros((40, 3, 10), bool)
    matrix[5:25, 1:, ::2] = True
    kept = np.flatnonzero(matrix)
    shapes = {"a": (7,), "b": (40, 3, 10), "c": (4, 4)}
    held = areas.find(kept + 7, shapes)
    assert [area.size for area in held] == [7, 20 * 10, 16]
    assert areas.to_numbers(kept + 7, held).tolist() == list(range(7, 207))
    # "b": 1, its rows, its columns; "c": 0; "a" is no matrix.
    assert len(areas.to_bits(held)) == 1 + 40 + 30 + 1


def test_a_grid_that_saves_nothing_is_not_written() -> None:
    held = areas.find(np.array([17]), {"w": (10, 10)})
    assert areas.to_bits(held).tolist() == [0]


def test_an_empty_grid_holds_nothing() -> None:
    """No encoder writes it, but a decoder has to bear it."""
    bits = np.array([1, 0, 0, 1, 1], np.uint8)
    held, used = areas.from_bits(bits, {"w": (2, 2)})
    assert (used, held[0].size) == (5, 0)
    assert len(areas.from_numbers(np.zeros(0, np.int64), held)) == 0
