"""A program's layout as JSON: it comes back whole, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ProgramError
from edge_runtime.layout import (
    KERNEL_SETS,
    LAYOUT_VERSION,
    ROLES,
    ProgramLayout,
    TensorLayout,
)

LAYOUT = ProgramLayout(
    role="train",
    kernels="native",
    model="digits",
    k=2,
    experts=8,
    batch=32,
    classes=10,
    shape=(3, 4),
    weights=(TensorLayout("a", (2, 3)), TensorLayout("scalar", ()), TensorLayout("b", (5,))),
)
SIZES = st.integers(1, 1000)
SHAPES = st.lists(SIZES, max_size=4).map(tuple)


@given(
    st.builds(
        ProgramLayout,
        role=st.sampled_from(ROLES),
        kernels=st.sampled_from(KERNEL_SETS),
        model=st.text(max_size=20),
        k=SIZES,
        experts=SIZES,
        batch=SIZES,
        classes=SIZES,
        shape=SHAPES,
        weights=st.lists(st.builds(TensorLayout, st.text(max_size=20), SHAPES), max_size=5).map(
            tuple
        ),
    )
)
def test_round_trip(layout: ProgramLayout) -> None:
    again = ProgramLayout.from_json(layout.to_json())
    assert again == layout and hash(again) == hash(layout)


def test_sizes_are_those_of_float32() -> None:
    assert [weight.size_bytes for weight in LAYOUT.weights] == [24, 4, 20]
    assert LAYOUT.weights_bytes == 48


def test_the_text_never_changes() -> None:
    """Programs of this version are in caches and on devices."""
    assert LAYOUT_VERSION == 2
    assert LAYOUT.to_json() == (
        '{"version":2,"role":"train","kernels":"native","model":"digits","k":2,"experts":8,'
        '"batch":32,"classes":10,"shape":[3,4],"weights":[{"name":"a","shape":[2,3]},'
        '{"name":"scalar","shape":[]},{"name":"b","shape":[5]}]}'
    )


def changed(**changes: Any) -> str:
    """The layout's text with some keys changed, or left out where the change is ``...``."""
    raw = {**json.loads(LAYOUT.to_json()), **changes}
    return json.dumps({name: value for name, value in raw.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("not json", "cannot be read"),
        ("[]", "cannot be read"),
        ("1", "cannot be read"),
        ("{}", "cannot be read"),
        (changed(version=...), "cannot be read"),
        (changed(k=...), "cannot be read"),
        (changed(colour="red"), "cannot be read"),
        (changed(shape=3), "cannot be read"),
        (changed(weights=None), "cannot be read"),
        (changed(weights=[1]), "cannot be read"),
        (changed(weights=[{"name": "a"}]), "cannot be read"),
        (changed(version=1), "has version 1, this runtime reads version 2; export .* again"),
        (changed(version=3), "has version 3, this runtime reads version 2; export .* again"),
        (changed(role="predict"), "role is 'predict', expected one of"),
        (changed(kernels="cuda"), "kernels are 'cuda', expected one of"),
        (changed(kernels=...), "cannot be read"),
        (changed(kernels=["native"]), "cannot be read"),
        (changed(k="2"), "cannot be read"),
        (changed(batch=0), "cannot be read"),
        (changed(experts=1.5), "cannot be read"),
        (changed(classes=True), "cannot be read"),
        (changed(model=7), "cannot be read"),
        (changed(shape=[3, -4]), "cannot be read"),
        (changed(shape="34"), "cannot be read"),
        (changed(weights=[{"name": 1, "shape": []}]), "cannot be read"),
        (changed(weights=[{"name": "a", "shape": ["2"]}]), "cannot be read"),
        ('{"version":2,"a":' * 100_000, "cannot be read"),
    ],
)
def test_anything_else_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(ProgramError, match=says) as caught:
        ProgramLayout.from_json(text)
    assert "\n" not in str(caught.value)
