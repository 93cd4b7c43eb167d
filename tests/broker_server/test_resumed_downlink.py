"""What devices take of a server that was killed and goes on, when they hold nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from broker_server.publishing.holdings import frames_of
from broker_server.state import State
from edge_runtime.parts import merge
from edge_runtime.protocol.messages import Assign
from tests.broker_server.scripted_device import Device
from tests.broker_server.scripted_fleet import Fleet, experiment


def taken_bytes(fleet: Fleet) -> Counter[int]:
    """Of the frames that the work of each round named, programs apart."""
    sizes: Counter[int] = Counter()
    for device in fleet.devices.values():
        for work in (message for message in device.received if isinstance(message, Assign)):
            programs = work.training_program.frames + work.evaluation_program.frames
            sizes[work.round] += sum(ref.size_bytes for ref in frames_of(work))
            sizes[work.round] -= sum(ref.size_bytes for ref in programs)
    return sizes


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("preset", ["default", "narrow"])
def test_new_devices_take_the_same_way_as_without_the_kill(
    tmp_path: Path, preset: str, rounds: int
) -> None:
    settings, end = experiment(wire={"preset": preset}), rounds + 3
    whole = Fleet(tmp_path / "whole", settings)
    state = whole.run(rounds)
    first = taken_bytes(whole)[1]
    saved = State.from_bytes(state.to_bytes())
    for name in list(whole.devices):  # they start anew, and hold nothing
        whole.add(name, Device(whole.world, name, whole.start.model, seed=len(name)))
    state = whole.run(end, state)
    resumed = Fleet(tmp_path / "resumed", settings)
    again = resumed.run(end, saved)
    assert taken_bytes(resumed) == taken_bytes(whole)
    one, other = merge(again.model), merge(state.model)
    assert all(one[name].tobytes() == value.tobytes() for name, value in other.items())
    # Whole frames at the codec of the beginning, and a step for each round since.
    assert taken_bytes(resumed)[rounds + 1] < (1 + rounds / 2) * first
