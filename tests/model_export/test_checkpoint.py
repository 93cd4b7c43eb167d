"""A trained model on disk: the same model comes back, and every defect is a DataError."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_runtime.errors import DataError
from edge_runtime.parts import GATE
from model_export.checkpoint import load_model, save_model
from model_export.models import MoE, make_model
from model_export.split import to_weights
from tests.model_export.eager import SPECS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", SPECS["digits"], to_weights(make_model(SPECS["digits"], 1)))
    return tmp_path / "model"


@pytest.mark.parametrize("name", SPECS)
def test_the_same_model_comes_back(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    model = make_model(spec, seed=4)
    save_model(tmp_path / "new" / "model", spec, to_weights(model))
    again = load_model(tmp_path / "new" / "model")
    assert isinstance(again, MoE) and again.spec == spec
    x = torch.randn(3, *spec.shape)
    for got, expected in zip(
        again(x, again.all_experts()), model(x, model.all_experts()), strict=True
    ):
        assert torch.equal(got, expected)


def test_a_second_save_replaces_the_first(saved: Path) -> None:
    weights = to_weights(make_model(SPECS["digits"], 2))
    save_model(saved, SPECS["digits"], weights)
    np.testing.assert_array_equal(to_weights(load_model(saved))[GATE], weights[GATE])


def test_the_weights_are_plain_numpy(saved: Path) -> None:
    with np.load(saved / "weights.npz", allow_pickle=False) as file:
        assert set(file.files) == set(MoE(SPECS["digits"]).state_dict())
        assert all(file[name].dtype == np.float32 for name in file.files)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the model to "):
        save_model(tmp_path / "file" / "model", SPECS["digits"], {})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spec_with(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def weights_with(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        arrays.update({n.replace("__", "."): value for n, value in changes.items()})
        np.savez(path, **arrays)

    return change


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model.json", Path.unlink, "expected the model.json of a run"),
        ("model.json", cut, "expected the model.json of a run"),
        ("model.json", lambda path: path.write_text("[]"), "expected the model.json of a run"),
        ("model.json", lambda path: path.write_text("{}"), "expected the model.json of a run"),
        ("model.json", spec_with(name="resnet"), "unknown model 'resnet'"),
        ("model.json", spec_with(shape=[8, 8]), "takes flat samples"),
        ("model.json", spec_with(shape=["64"]), "expected the model.json of a run"),
        ("model.json", spec_with(shape=None), "expected the model.json of a run"),
        ("model.json", spec_with(classes=-1), "expected the model.json of a run"),
        ("model.json", spec_with(experts="8"), "expected the model.json of a run"),
        ("model.json", spec_with(classes=11), "'experts.0.2.weight' is float32"),
        ("model.json", spec_with(experts=9), "experts.8.0.weight"),
        ("weights.npz", Path.unlink, "weights.npz: expected an .npz file, found no such file"),
        ("weights.npz", cut, "weights.npz: expected an .npz file, but"),
        ("weights.npz", lambda path: path.write_bytes(b""), "weights.npz: expected an .npz file"),
        ("weights.npz", weights_with(gate__weight=np.zeros((8, 64))), "'gate.weight' is float64"),
        (
            "weights.npz",
            weights_with(gate__weight=np.full((8, 64), np.nan, np.float32)),
            "'gate.weight' holds NaN",
        ),
    ],
)
def test_defects(saved: Path, file: str, damage: Callable[[Path], None], says: str) -> None:
    damage(saved / file)
    with pytest.raises(DataError, match=says) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)
