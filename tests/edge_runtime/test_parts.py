"""Weights in parts: apart and together again, the difference, and the check of strange tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import WireError
from edge_runtime.parts import GATE, Tensors, check_like, difference, merge, split

NAMES = st.text("abc.012", min_size=1, max_size=8)


@st.composite
def any_weights(draw: st.DrawFn) -> Tensors:
    """Weights by full name, each of another value; experts may differ from each other."""
    names = [f"backbone.{name}" for name in draw(st.sets(NAMES, max_size=4))]
    names.append(GATE)
    for slot in range(draw(st.integers(1, 12))):
        names += [f"experts.{slot}.{name}" for name in draw(st.sets(NAMES, min_size=1, max_size=3))]
    order = draw(st.permutations(names))
    return {name: np.full((2, 3), number, np.float32) for number, name in enumerate(order)}


@given(any_weights())
def test_merge_undoes_split(weights: Tensors) -> None:
    parts = split(weights)
    again = merge(parts)
    assert again.keys() == weights.keys()
    assert all(again[name] is weights[name] for name in weights), "a copy, or another tensor"
    assert parts.gate is weights[GATE]


def test_names_inside_a_part_are_relative() -> None:
    values = {
        name: np.full(1, number, np.float32)
        for number, name in enumerate(
            ["experts.1.0.weight", "backbone.3.bias", GATE, "experts.0.0.weight"]
        )
    }
    parts = split(values)
    assert parts.backbone == {"3.bias": 1}
    assert parts.experts == ({"0.weight": 3}, {"0.weight": 0})


def test_slots_are_in_the_order_of_numbers_not_of_text() -> None:
    weights: Tensors = {GATE: np.zeros((12, 1), np.float32)}
    for slot in sorted(range(12), key=str):
        weights[f"experts.{slot}.w"] = np.full(1, slot, np.float32)
    assert [float(expert["w"][0]) for expert in split(weights).experts] == list(range(12))


def test_difference() -> None:
    before = {"a": np.array([1, 2], np.float32), "b": np.array(5, np.float32)}
    after = {"a": np.array([4, 0], np.float32), "b": np.array(5, np.float32)}
    change = difference(after, before)
    np.testing.assert_array_equal(change["a"], [3, -2])
    np.testing.assert_array_equal(change["b"], 0)
    assert change["a"].dtype == np.float32 and before["a"][0] == 1


MODEL: Tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}
A, B = np.ones((2, 3), np.float32), np.ones((), np.float32)


def test_tensors_like_the_models_pass_as_they_are() -> None:
    A.flags.writeable = False  # as a codec's are
    checked = check_like({"b": B, "a": A}, MODEL, "update")
    assert checked["a"] is A and checked["b"] is B


@pytest.mark.parametrize(
    ("tensors", "reason", "says"),
    [
        ({"a": A}, "wrong-names", "missing or unknown tensor 'b'"),
        ({}, "wrong-names", "missing or unknown tensor 'a'"),
        ({"a": A, "b": B, "c": B}, "wrong-names", "missing or unknown tensor 'c'"),
        ({"a": A.T, "b": B}, "wrong-shape", r"'a' is float32 \[3, 2\], expected float32 \[2, 3\]"),
        ({"a": A, "b": B[None]}, "wrong-shape", r"'b' is float32 \[1\], expected float32 \[\]"),
        ({"a": A.astype(np.float16), "b": B}, "wrong-shape", "'a' is float16"),
        ({"a": A.astype(float), "b": B}, "wrong-shape", "'a' is float64"),
        ({"a": A.astype(np.int32), "b": B}, "wrong-shape", "'a' is int32"),
        ({"a": A * np.nan, "b": B}, "not-finite", "'a' holds NaN or infinity"),
        ({"a": A, "b": B / np.float32(0)}, "not-finite", "'b' holds NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_other_tensors_are_refused(tensors: Tensors, reason: str, says: str) -> None:
    with pytest.raises(WireError, match=f"{reason}: update of x: .*{says}") as caught:
        check_like(tensors, MODEL, "update of x")
    assert caught.value.reason == reason
