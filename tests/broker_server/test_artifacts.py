"""What an experiment says of its programs reaches the exporter."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_server.artifacts import Artifacts
from broker_server.experiment import Experiment
from edge_runtime.codec import RawCodec
from model_export import cache
from model_export.models import ModelSpec
from model_export.program import Program, make_layout


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
    Artifacts(experiment, spec, cache.ProgramCache(tmp_path), RawCodec()).prepare()
    assert asked == [(2, 8, "train", "native", balance), (2, 8, "evaluate", "native", 0.0)]
