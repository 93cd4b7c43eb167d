"""What a round moves, against the blobs of a model."""

from __future__ import annotations

import pytest

from broker_server.demand import Demand
from broker_server.experiment import Experiment
from edge_runtime.codec import RawCodec
from edge_runtime.parts import Tensors
from model_export.split import encode_backbone, encode_expert, encode_gate_rows
from tests.broker_server.sample_model import random_model

MODEL = random_model(0, experts=6, big=7)


def payload_bytes(blob: bytes) -> int:
    tensors: Tensors = dict(RawCodec().decode(blob))
    return sum(value.nbytes for value in tensors.values())


@pytest.mark.parametrize("mode", ["shared", "local"])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_bytes_are_those_of_the_weights_in_the_blobs(mode: str, k: int) -> None:
    demand = Demand.of(MODEL, Experiment.model_validate({"gate": {"mode": mode}}))
    codec, experts = RawCodec(), list(range(k))
    gate = payload_bytes(encode_gate_rows(MODEL, experts, codec))
    rest = payload_bytes(encode_backbone(MODEL, codec)) + sum(
        payload_bytes(encode_expert(MODEL, e, codec)) for e in experts
    )
    assert demand.down_bytes(k) == rest + gate
    assert demand.up_bytes(k) == rest + (gate if mode == "shared" else 0)
    assert demand.moved_bytes(k) == demand.down_bytes(k) + demand.up_bytes(k)


def test_the_experiment_says_until_when() -> None:
    sections = {"train": {"epochs": 3}, "round": {"deadline_s": 7.5, "byte_budget": 1000}}
    demand = Demand.of(MODEL, Experiment.model_validate(sections))
    assert (demand.epochs, demand.deadline_s, demand.byte_budget) == (3, 7.5, 1000)
