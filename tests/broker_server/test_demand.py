"""What a round moves, against what the codecs make of a model."""

from __future__ import annotations

import numpy as np
import pytest

from broker_server.demand import Demand
from broker_server.experiment import Experiment
from edge_runtime.codec import encode, parse_coding
from edge_runtime.parts import GATE, Tensors
from tests.broker_server.sample_model import random_model

MODEL = random_model(0, experts=6, big=40)
EACH_BYTES = 64  # headers, and what the values make of the size


def coded_bytes(tensors: Tensors, spec: str) -> int:
    return len(encode(tensors, parse_coding(spec), np.random.default_rng(0)))


@pytest.mark.parametrize("mode", ["shared", "local"])
@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize(("uplink", "downlink"), [("raw", "fp16"), ("int4", "raw")])
def test_bytes_are_those_of_coded_weights(mode: str, k: int, uplink: str, downlink: str) -> None:
    wire = {"uplink": uplink, "downlink": downlink}
    demand = Demand.of(MODEL, Experiment.model_validate({"gate": {"mode": mode}, "wire": wire}))
    slack = (k + 2) * EACH_BYTES
    down = [MODEL.backbone, {GATE: MODEL.gate}, *MODEL.experts[:k]]
    up = [MODEL.backbone, *MODEL.experts[:k]]
    if mode == "shared":
        up.append({GATE: MODEL.gate[:k]})
    for given, parts, spec in (
        (demand.down_bytes(k), down, downlink),
        (demand.up_bytes(k), up, uplink),
    ):
        assert given == pytest.approx(sum(coded_bytes(part, spec) for part in parts), abs=slack)


def test_a_narrow_wire_moves_less() -> None:
    demands = [
        Demand.of(MODEL, Experiment.model_validate({"wire": {"preset": preset}}))
        for preset in ("lossless", "default", "narrow")
    ]
    moved = [demand.down_bytes(3) + demand.up_bytes(3) for demand in demands]
    assert moved[0] > 4 * moved[1] > 4 * moved[2]


def test_the_experiment_says_until_when() -> None:
    sections = {"train": {"epochs": 3}, "round": {"deadline_s": 7.5}}
    demand = Demand.of(MODEL, Experiment.model_validate(sections))
    assert (demand.epochs, demand.deadline_s, demand.least) == (3, 7.5, 1)
    full = {"assignment": {"policy": "full"}, "model": {"experts": 5}}
    assert Demand.of(MODEL, Experiment.model_validate(full)).least == 5
