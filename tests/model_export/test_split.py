"""A torch model to parts, to what travels of them, and back: exact and whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.codec import decode, encode, parse_coding
from edge_runtime.parts import GATE, Tensors, merge, split
from edge_runtime.protocol.blob import digest
from edge_runtime.tensor_blob import pack_tensors, unpack_tensors
from model_export.models import MoE, make_model
from model_export.split import to_model, to_weights
from tests.model_export.eager import SPECS

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def tensor(*shape: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, shape, elements=FINITE)


@st.composite
def any_weights(draw: st.DrawFn) -> Tensors:
    """Weights of a small model; the values are any float32, -0 and the smallest ones too."""
    experts = draw(st.integers(1, 12))
    features, classes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    weights = {
        "backbone.0.weight": draw(tensor(features, 2, 1, 1)),
        "backbone.1.bias": draw(tensor(features)),
        GATE: draw(tensor(experts, features)),
    }
    for e in range(experts):
        weights[f"experts.{e}.0.weight"] = draw(tensor(classes, features))
        weights[f"experts.{e}.3.bias"] = draw(tensor(classes))
    return weights


def assert_same(got: Tensors, expected: Tensors) -> None:
    """Bit for bit."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        assert got[name].tobytes() == value.tobytes(), name


def travelled(tensors: Tensors) -> Tensors:
    """Through a lossless frame, as a server sends it, and a content, as a device keeps it."""
    coding = parse_coding("raw+zip")
    frame = encode(tensors, coding, np.random.default_rng(0), described=True)
    return unpack_tensors(pack_tensors(decode(frame, None, 1 << 30)))


def all_travelled(weights: Tensors) -> Tensors:
    parts = split(weights)
    return merge(
        replace(
            parts,
            backbone=travelled(parts.backbone),
            gate=travelled({GATE: parts.gate})[GATE],
            experts=tuple(travelled(expert) for expert in parts.experts),
        )
    )


@given(any_weights())
@settings(max_examples=50)
def test_what_travels_in_parts_is_the_whole_again(weights: Tensors) -> None:
    assert_same(all_travelled(weights), weights)


@pytest.mark.filterwarnings("error")  # torch only warns of the read-only arrays that blobs give
@pytest.mark.parametrize("name", SPECS)
def test_a_real_model_survives(name: str) -> None:
    model = make_model(SPECS[name], seed=1)
    weights = to_weights(model)
    assert len(split(weights).experts) == SPECS[name].experts
    again = MoE(SPECS[name])
    to_model(again, all_travelled(weights))
    for parameter, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[parameter])


def test_weights_are_copies_both_ways() -> None:
    model = make_model(SPECS["digits"], seed=1)
    weights = to_weights(model)
    before = weights[GATE].copy()
    with torch.no_grad():
        model.gate.weight += 1.0
    np.testing.assert_array_equal(weights[GATE], before)
    to_model(model, weights)
    weights[GATE] += 1.0
    np.testing.assert_array_equal(model.gate.weight.detach().numpy(), before)


@given(any_weights())
@settings(max_examples=30)
def test_an_experts_content_depends_on_its_values_only(weights: Tensors) -> None:
    """Not on its place: so the same values are the same content, wherever they stand."""
    experts = split(weights).experts
    turned = {
        **{name: value for name, value in weights.items() if not name.startswith("experts.")},
        **{
            f"experts.{len(experts) - 1 - e}.{name}": value
            for e, expert in enumerate(experts)
            for name, value in expert.items()
        },
    }
    for one, other in zip(experts, reversed(split(turned).experts), strict=True):
        assert digest(pack_tensors(one)) == digest(pack_tensors(other))
    first = experts[0]
    moved = {name: value + 1 for name, value in first.items()}
    if any((moved[name] != value).any() for name, value in first.items()):
        assert pack_tensors(moved) != pack_tensors(first)
