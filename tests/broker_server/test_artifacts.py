"""What work names: programs as the experiment asks for, and how each device gets there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_server.artifacts import Artifacts
from broker_server.experiment import Experiment
from broker_server.publishing.history import Frame
from broker_server.publishing.holdings import Holdings
from broker_server.publishing.publication import Publication
from broker_server.roster import Roster
from broker_server.state import State
from edge_runtime.artifact import build_program
from edge_runtime.compression import own_compressors
from edge_runtime.parts import split
from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.messages import Artifact, Welcome
from edge_runtime.work import contents_of
from model_export import cache
from model_export.models import ModelSpec, make_model
from model_export.program import Program, make_layout
from model_export.split import to_weights
from tests.broker_server.layout_programs import LayoutPrograms
from tests.broker_server.scripted_device import HELLO


@pytest.mark.parametrize("balance", [0.0, 0.02])
def test_programs_are_exported_as_the_experiment_says(
    balance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def export(
        spec: ModelSpec, k: int, batch: int, role: str, kernels: str, *, balance: float
    ) -> Program:
        asked.append((k, batch, role, kernels, balance))
        return Program(b"program", make_layout(spec, k, batch, role, kernels), 0)

    monkeypatch.setattr(cache, "export_program", export)
    experiment = Experiment.model_validate(
        {
            "model": {"experts": 4, "experts_per_device": 2},
            "train": {"batch": 16, "micro_batch": 8, "balance_loss": balance},
        }
    )
    spec = ModelSpec("digits", (64,), 10, 4)
    publication = Publication(experiment.wire.codings, 0, 0)
    Artifacts(experiment, spec, cache.ProgramCache(tmp_path), publication).prepare()
    assert asked == [(2, 8, "train", "native", balance), (2, 8, "evaluate", "native", 0.0)]


SPEC = ModelSpec("digits", (64,), 10, 4)


class Round:
    """One round's work, for devices that know and hold different things."""

    def __init__(self, **hellos: dict[str, Any]) -> None:
        experiment = Experiment.model_validate(
            {
                "data": {"devices": len(hellos)},
                "model": {"experts": 4, "experts_per_device": 2},
                "wire": {"uplink": "int8+zip"},
            }
        )
        publication = Publication(experiment.wire.codings, 0, 0)
        self.artifacts = Artifacts(experiment, SPEC, LayoutPrograms(), publication)
        roster, holdings = Roster(SPEC, "s"), Holdings()
        for client, fields in hellos.items():
            fit = dataclasses.replace(HELLO, shape=[64], labels=10, **fields)
            assert isinstance(roster.admit(client, fit), Welcome)
            holdings.say(client, fit.held)
        state = State("s", 0, split(to_weights(make_model(SPEC, 0))), {}, {}, NONE, NONE)
        model = publication.begin(state.model, roster.shared_codecs)
        state = dataclasses.replace(state, model=model, published=model)
        experts = {client: [1, 3] for client in hellos}
        self.work = self.artifacts.make_work(state, 1, 1, experts, roster, holdings)
        self.holdings = holdings

    def frames(self, artifact: Artifact) -> list[Frame]:
        found = [self.artifacts.find(ref.digest) for ref in artifact.frames]
        return [frame for frame in found if frame is not None]


NONE = np.zeros(4, np.int64)


def test_each_update_is_coded_by_what_its_device_knows() -> None:
    work = Round(a={}, b={"codecs": ["raw", "int8", "zlib"]}).work
    best = f"int8+{own_compressors()[-1]}"
    assert {client: assign.codec for client, assign in work.assigns.items()} == {
        "a": best,
        "b": "int8+zlib",
    }


def test_a_program_has_one_frame_for_all_who_can_read_it() -> None:
    made = Round(a={}, b={}, c={"codecs": ["raw"]})
    programs = [made.work.assigns[client].training_program for client in "abc"]
    assert programs[0] == programs[1] != programs[2]
    layout = LayoutPrograms().get(SPEC, 2, 32, "train", "stock").data
    for artifact in programs:
        assert artifact.digest == digest(layout) and not artifact.base
        (frame,) = made.frames(artifact)
        assert frame.kind == "program"
        assert build_program(artifact, [frame.data]) == layout
    assert made.frames(programs[2])[0].needs == set()


def test_what_a_device_holds_is_not_named() -> None:
    first = Round(a={}).work.assigns["a"]
    held = [first.training_program.digest, first.gate.digest, first.expert_parts[1].digest]
    made = Round(a={"held": held})
    assign = made.work.assigns["a"]
    assert assign.training_program.frames == assign.gate.frames == []
    assert assign.expert_parts[0].frames and not assign.expert_parts[1].frames
    assert assign.evaluation_program.frames and assign.backbone.frames
    for _, artifact in contents_of(assign):
        assert len(made.frames(artifact)) == len(artifact.frames)
    made.holdings.say("a", [])
    assert made.work.plan("a") == first
