"""What each codec makes of a real update: bytes and time, beside JSON lists, base64 and pickle."""

from __future__ import annotations

import base64
import json
import pickle
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from broker_server.config import load_experiment
from broker_server.server import make_spec
from device_profiles import datasets
from device_profiles.shards import make_shards
from edge_runtime import local_training
from edge_runtime.codec import PRESETS, decode, encode, known_codecs, parse_coding, resolve
from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.parts import GATE, ModelParts, Tensors, difference, merge, split
from model_export.cache import ProgramCache
from model_export.models import make_model
from model_export.split import to_weights

ROOT = Path(__file__).parents[1]
EXPERIMENTS = {"digits": ("quickstart", ""), "har": ("har", "uci_har.npz")}
EXPERIMENTS["cifar"] = ("cifar", "cifar10_small.npz")
SPECS = ("raw", "raw+zip", "fp16", "fp16+zip", "int8", "int8+zip", "int4", "int4+zip")
SHARES = ("topk(0.1)", "topk(0.05)", "topk(0.01)", "topk(0.2,4)", "topk(0.1,4)", "topk(0.05,4)")
EXPERTS = [0, 1]
TURNS = 15

Update = list[Tensors]  # a device's changes, part by part
_Way = tuple[Callable[[Update], Any], Callable[[Any], object], Callable[[Any], int]]


def measure(model: str, data: Path) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """Facts of the update, and per way its bytes and median milliseconds."""
    update = real_update(model, data)
    parameters = sum(value.size for part in update for value in part.values())
    ways, times = _ways(update), dict[str, list[tuple[float, float]]]()
    sizes: dict[str, int] = {}
    for _ in range(TURNS):
        for name, (pack, unpack, size_of) in ways.items():
            began_s = time.perf_counter()
            packed = pack(update)
            packed_s = time.perf_counter()
            unpack(packed)
            ended_s = time.perf_counter()
            times.setdefault(name, []).append((packed_s - began_s, ended_s - packed_s))
            sizes[name] = size_of(packed)
    costs = {
        name: {
            "bytes": sizes[name],
            "bytes_per_parameter": sizes[name] / parameters,
            "encode_ms": 1000 * statistics.median(took for took, _ in times[name]),
            "decode_ms": 1000 * statistics.median(took for _, took in times[name]),
        }
        for name in ways
    }
    return {"parameters": parameters, "parts": len(update)}, costs


def real_update(model: str, data: Path) -> Update:
    """What one round of the experiment changes on the device with the most samples."""
    name, file = EXPERIMENTS[model]
    changes = [f"data.path={data / file}"] if file else []
    experiment = load_experiment(ROOT / "experiments" / f"{name}.toml", changes)
    settings, train = experiment.data, experiment.train
    dataset = datasets.load(settings.dataset, settings.path or None)
    shards = make_shards(
        dataset, settings.devices, settings.partition, experiment.seed, settings.test_fraction
    )
    shard = max(shards.values(), key=lambda shard: shard.samples)
    spec, cache = make_spec(experiment, dataset), ProgramCache()
    full = split(to_weights(make_model(spec, experiment.seed)))
    before = ModelParts(full.backbone, full.gate, tuple(full.experts[e] for e in EXPERTS))
    trainer = NativeTrainer(1)
    trainer.load(
        *(
            cache.get(
                spec, len(EXPERTS), train.batch, role, "native", balance=train.balance_loss
            ).data
            for role in ("train", "evaluate")
        )
    )
    trainer.assign(EXPERTS, merge(before))
    rates = train.rates(1)
    local_training.fit(trainer, shard.train, shard.y_train, train.epochs, train.batch, rates, 0)
    after = split(trainer.weights())
    return [
        difference(after.backbone, before.backbone),
        {GATE: (after.gate - before.gate)[EXPERTS]},
        *(difference(a, b) for a, b in zip(after.experts, before.experts, strict=True)),
    ]


def _ways(update: Update) -> dict[str, _Way]:
    ways: dict[str, _Way] = {
        "JSON lists": (_to_json_lists, json.loads, len),
        "base64 of raw in JSON": (_to_base64, _from_base64, len),
        "pickle": (pickle.dumps, pickle.loads, len),
    }
    for spec in (*SPECS, *SHARES):
        ways[spec] = _codec(spec, update)
    for name, preset in PRESETS.items():
        ways[f"preset {name}"] = _codec(preset.uplink, update)
    return ways


def _codec(spec: str, update: Update) -> _Way:
    coding = resolve(parse_coding(spec), known_codecs())
    shapes = [{name: value.shape for name, value in sorted(part.items())} for part in update]
    limit = 4 * sum(value.size for part in update for value in part.values())

    def pack(parts: Update) -> list[bytes]:
        rng = np.random.default_rng(0)
        return [encode(part, coding, rng) for part in parts]

    def unpack(blobs: list[bytes]) -> list[Tensors]:
        return [decode(blob, shape, limit) for blob, shape in zip(blobs, shapes, strict=True)]

    return pack, unpack, lambda blobs: sum(map(len, blobs))


def _lists(update: Update) -> list[dict[str, list[Any]]]:
    return [{name: value.tolist() for name, value in part.items()} for part in update]


def _to_json_lists(update: Update) -> str:
    return json.dumps(_lists(update))


def _to_base64(update: Update) -> str:
    return json.dumps(
        [
            {name: [value.shape, base64.b64encode(value.tobytes()).decode()] for name, value in p}
            for p in (part.items() for part in update)
        ]
    )


def _from_base64(text: str) -> list[Mapping[str, Any]]:
    return [
        {
            name: np.frombuffer(base64.b64decode(data), np.float32).reshape(shape)
            for name, (shape, data) in part.items()
        }
        for part in json.loads(text)
    ]
