"""What a program says of itself: the names, shapes and sizes that a caller must know.

A program carries this as JSON in its constant method `LAYOUT_METHOD`, so a `.pte` file needs no
second file beside it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from edge_runtime.errors import ProgramError

LAYOUT_METHOD = "flexmoe_layout"
LAYOUT_VERSION = 2
ROLES = ("train", "evaluate")
KERNEL_SETS = ("native", "stock")
"""The operators that a program calls: our runtime's (docs/native.md), or ExecuTorch's own."""


@dataclass(frozen=True)
class TensorLayout:
    """One float32 weight: its name in the subset model and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class ProgramLayout:
    """The calling convention of one program.

    Inputs: the weights in order (float32), then `x` [batch, *shape] float32, `y` [batch] int64,
    `experts` [k] int64 (global ids), `sample_weight` [batch] float32. Outputs: `loss` (scalar),
    `stats` [k, 3] (routed, summed loss, hits), and for the role `train` one gradient per weight.
    """

    role: str
    kernels: str
    model: str
    k: int
    experts: int
    batch: int
    classes: int
    shape: tuple[int, ...]
    weights: tuple[TensorLayout, ...]

    @property
    def weights_bytes(self) -> int:
        return sum(weight.size_bytes for weight in self.weights)

    def to_json(self) -> str:
        return json.dumps({"version": LAYOUT_VERSION, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ProgramLayout:
        """The layout that `to_json` wrote; `ProgramError` for anything else."""
        try:
            raw = json.loads(text)
            version = raw.pop("version")
            if version != LAYOUT_VERSION:
                raise ProgramError(
                    f"the program's layout has version {version}, this runtime reads version "
                    f"{LAYOUT_VERSION}; export the program again with the same flexmoe release"
                )
            layout = cls(
                role=_text(raw.pop("role")),
                kernels=_text(raw.pop("kernels")),
                model=_text(raw.pop("model")),
                k=_size(raw.pop("k")),
                experts=_size(raw.pop("experts")),
                batch=_size(raw.pop("batch")),
                classes=_size(raw.pop("classes")),
                shape=_shape(raw.pop("shape")),
                weights=tuple(
                    TensorLayout(_text(w["name"]), _shape(w["shape"])) for w in raw.pop("weights")
                ),
            )
            if raw:
                raise ValueError(f"unknown keys {sorted(raw)}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ProgramError(f"the program's layout cannot be read: {error!r}") from None
        if layout.role not in ROLES:
            raise ProgramError(f"the program's role is {layout.role!r}, expected one of {ROLES}")
        if layout.kernels not in KERNEL_SETS:
            raise ProgramError(
                f"the program's kernels are {layout.kernels!r}, expected one of {KERNEL_SETS}"
            )
        return layout


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _size(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"expected a whole number above 0, got {value!r}")
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of sizes, got {value!r}")
    return tuple(_size(size) for size in value)
