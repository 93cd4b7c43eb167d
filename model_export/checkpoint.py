"""A trained model as files: `weights.npz` (plain numpy) and `model.json` (what builds it)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edge_runtime.errors import ConfigError, DataError, WireError
from edge_runtime.parts import Tensors, check_like
from edge_runtime.shard import read_npz
from model_export.models import ModelSpec, MoE
from model_export.split import to_model, to_weights


def save_model(directory: Path, spec: ModelSpec, weights: Tensors) -> None:
    """Write `weights` (by `state_dict` name) and `spec` to `directory`; `DataError` if it fails."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "weights.npz").open("wb") as file:
            np.savez(file, **weights)  # type: ignore[arg-type]
        (directory / "model.json").write_text(json.dumps(asdict(spec), indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write the model to {directory}: {error.strerror}") from None


def load_model(directory: Path) -> MoE:
    """The model that `save_model` wrote, as a torch module; `DataError` for anything else."""
    try:
        raw = json.loads((directory / "model.json").read_text())
        spec = ModelSpec(raw["name"], tuple(raw["shape"]), raw["classes"], raw["experts"])
        model = MoE(spec)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise DataError(f"{directory}: expected the model.json of a run ({error})") from None
    like = to_weights(model)
    weights = read_npz(directory / "weights.npz", list(like))
    try:
        to_model(model, check_like(weights, like, str(directory)))
    except WireError as error:
        raise DataError(str(error)) from None
    return model
