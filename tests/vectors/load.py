"""The vectors as they are on disk, and what tests of them share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime.compression import own_compressors
from edge_runtime.parts import Tensors
from tests.vectors import make, plain_messages, plain_tensors

PAGE = make.PAGE.read_text(encoding="utf-8")
SCHEMA = plain_messages.schema(PAGE)
MOST = 1 << 20
NAMES = ["bad", "chain", "codecs", "messages", "programs", "tensors", "topics", "update"]
VECTORS = {
    name: json.loads((make.FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES
}
ZSTD = "zstd" in own_compressors()
Shapes = dict[str, tuple[int, ...]]


def named(cases: list[dict[str, Any]], key: str) -> pytest.MarkDecorator:
    """A test for each case."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case[key]) for case in cases])


def shapes_of(case: dict[str, Any]) -> Shapes | None:
    """The shapes that a case names, if it does."""
    found = case.get("shapes")
    return found and {name: tuple(shape) for name, shape in found.items()}


def floats(values: dict[str, str], shapes: Shapes) -> Tensors:
    """Tensors of values in hex."""
    return {
        name: np.frombuffer(bytes.fromhex(found), "<f4").reshape(shapes[name])
        for name, found in values.items()
    }


def in_hex(tensors: dict[str, plain_tensors.Tensor]) -> dict[str, str]:
    """The values of plain tensors in hex."""
    return {
        name: plain_tensors.floats_to_bytes(values).hex() for name, (_, values) in tensors.items()
    }


def outcome(reads: Callable[[], Any], *refusals: type[Exception]) -> Any:
    """What it reads, or that it refuses."""
    try:
        return reads()
    except refusals:
        return "refused"
