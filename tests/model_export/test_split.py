"""A full model to blobs and back: exact, whole, and refused where a blob is another's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.blob import digest
from edge_runtime.codec import RawCodec
from edge_runtime.errors import WireError
from edge_runtime.parts import GATE, Tensors, split
from model_export.models import MoE, make_model
from model_export.split import (
    encode_backbone,
    encode_expert,
    encode_gate_rows,
    merge_from_blobs,
    split_to_blobs,
    to_model,
    to_weights,
)
from tests.model_export.eager import SPECS

CODEC = RawCodec()
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
    """Bit for bit, in the same order."""
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        assert got[name].tobytes() == value.tobytes(), name


@given(any_weights())
@settings(max_examples=50)
def test_split_and_merge_are_exact(weights: Tensors) -> None:
    backbone, gate, experts = split_to_blobs(weights, CODEC)
    assert_same(merge_from_blobs(backbone, gate, experts, weights, CODEC), weights)


@pytest.mark.filterwarnings("error")  # torch only warns of the read-only arrays that blobs give
@pytest.mark.parametrize("name", SPECS)
def test_a_real_model_survives(name: str) -> None:
    model = make_model(SPECS[name], seed=1)
    weights = to_weights(model)
    backbone, gate, experts = split_to_blobs(weights, CODEC)
    assert len(experts) == SPECS[name].experts
    again = MoE(SPECS[name])
    to_model(again, merge_from_blobs(backbone, gate, experts, weights, CODEC))
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


@given(any_weights(), st.data())
@settings(max_examples=50)
def test_gate_rows_are_those_of_the_asked_experts(weights: Tensors, data: st.DataObject) -> None:
    count = len(weights[GATE])
    asked = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    rows = CODEC.decode(encode_gate_rows(split(weights), asked, CODEC))
    assert list(rows) == [GATE]
    np.testing.assert_array_equal(rows[GATE], np.stack([weights[GATE][e] for e in asked]))


@given(any_weights())
@settings(max_examples=30)
def test_an_experts_blob_depends_on_its_values_only(weights: Tensors) -> None:
    parts = split(weights)
    turned = replace(parts, experts=parts.experts[::-1])
    last = len(parts.experts) - 1
    for e in range(last + 1):
        blob = encode_expert(parts, e, CODEC)
        assert digest(blob) == digest(encode_expert(turned, last - e, CODEC))
    other = {n: value + 1 for n, value in parts.experts[0].items()}
    moved = replace(parts, experts=(other, *parts.experts[1:]))
    if any((other[n] != value).any() for n, value in parts.experts[0].items()):
        assert encode_expert(moved, 0, CODEC) != encode_expert(parts, 0, CODEC)
    assert encode_backbone(moved, CODEC) == encode_backbone(parts, CODEC)


def test_blobs_that_are_not_the_models_are_refused() -> None:
    weights = to_weights(make_model(SPECS["digits"], seed=1))
    backbone, gate, experts = split_to_blobs(weights, CODEC)
    nan = {**weights, "experts.2.0.bias": np.full(128, np.nan, np.float32)}
    cases = [
        ("wrong-names", (experts[0], gate, experts)),
        ("wrong-names", (backbone, experts[0], experts)),
        ("wrong-names", (backbone, gate, experts[:-1])),
        ("wrong-names", (backbone, gate, [*experts, experts[0]])),
        ("wrong-shape", (backbone, encode_gate_rows(split(weights), [0, 1], CODEC), experts)),
        ("not-finite", (backbone, gate, split_to_blobs(nan, CODEC)[2])),
        ("bad-tensors", (backbone[:-1], gate, experts)),
    ]
    for reason, (b, g, e) in cases:
        with pytest.raises(WireError) as caught:
            merge_from_blobs(b, g, e, weights, CODEC)
        assert caught.value.reason == reason, caught.value
