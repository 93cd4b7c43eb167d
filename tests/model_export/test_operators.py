"""Our operators as torch knows them: both forms, shapes, and what docs/native.md promises."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_export import operators
from model_export.operators import SCHEMAS, ours
from model_export.reference import REFERENCE

PAGE = Path(__file__).parents[2] / "docs" / "native.md"


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


IMAGES, KERNELS = random(2, 4, 5, 6), random(6, 2, 3, 2)
GEOMETRY = ([2, 1], [1, 0], [1, 2], 2)
CONVOLVED = [2, 6, 3, 4]
POOL = ([3, 2], [2, 1], [1, 0])
INDICES = torch.randint(0, 30, (2, 4, 3, 5), generator=torch.Generator().manual_seed(1))
MIXTURE = (
    random(3, 5),
    random(2, 3, 4),
    torch.tensor([0, 3, 1]),
    torch.tensor([4, 1]),
    torch.tensor([0.5, 0.0, 1.0]),
)
EXAMPLES: dict[str, list[tuple[Any, ...]]] = {
    "gemm": [
        (random(3, 4), random(4, 5), random(5), False, False, True),
        (random(4, 3), random(5, 4), None, True, True, False),
    ],
    "sum_rows": [(random(3, 4),)],
    "conv2d": [
        (IMAGES, KERNELS, random(6), *GEOMETRY, True),
        (IMAGES, KERNELS, None, *GEOMETRY, False),
    ],
    "conv2d_backward_input": [(random(*CONVOLVED), KERNELS, [2, 4, 5, 6], *GEOMETRY)],
    "conv2d_backward_weight": [(random(*CONVOLVED), IMAGES, [6, 2, 3, 2], *GEOMETRY)],
    "sum_channels": [(IMAGES,)],
    "group_norm": [
        (IMAGES, random(4), random(4), 2, 1e-5, True),
        (IMAGES, None, None, 4, 1e-5, False),
    ],
    "group_norm_backward": [
        (IMAGES.cos(), IMAGES, random(2, 2), random(2, 2).exp(), random(4), IMAGES, 2),
        (IMAGES.cos(), IMAGES, random(2, 2), random(2, 2).exp(), None, None, 2),
    ],
    "relu": [(IMAGES,)],
    "relu_backward": [(IMAGES.cos(), IMAGES)],
    "add": [(IMAGES, IMAGES.cos())],
    "mean_pool": [(IMAGES,)],
    "mean_pool_backward": [(random(2, 4), [2, 4, 5, 6])],
    "avg_pool2d": [(IMAGES, *POOL)],
    "avg_pool2d_backward": [(random(2, 4, 3, 5), [2, 4, 5, 6], *POOL)],
    "max_pool2d": [(IMAGES, *POOL, [1, 1])],
    "max_pool2d_backward": [(random(2, 4, 3, 5), INDICES, [2, 4, 5, 6])],
    "stack": [([IMAGES, IMAGES.cos()],)],
    "select": [(IMAGES, 1)],
    "mixture_cross_entropy": [MIXTURE],
    "balanced_mixture_cross_entropy": [(*MIXTURE, 0.3)],
    "mixture_evaluate": [MIXTURE],
}
CASES = [
    pytest.param(name, arguments, id=f"{name}-{i}")
    for name, cases in EXAMPLES.items()
    for i, arguments in enumerate(cases)
]


def results(name: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    found = getattr(ours, name).default(*arguments)
    return [found] if isinstance(found, Tensor) else list(found)


def test_every_operator_is_tested_and_has_a_meaning() -> None:
    assert EXAMPLES.keys() == SCHEMAS.keys() == REFERENCE.keys()


def test_the_page_names_the_same_operators() -> None:
    """With the same arguments in the same order; ``mixture_evaluate(same)`` apart."""
    table = PAGE.read_text().split("## Operators")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    written = dict(re.findall(r"`?(\w+)\(([^)]*)\)", " ".join(rows)))
    kinds = r"\b(?:Tensor\[\]|int\[\]|int|bool|float)\s+|Tensor\[\]\s+|\?"
    for name, (arguments, _) in SCHEMAS.items():
        names = re.findall(r"(\w+)(?:,|$)", arguments)
        if name != "mixture_evaluate":
            assert re.sub(kinds, "", written[name]).split(", ") == names
    assert written.keys() == SCHEMAS.keys()


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_torch_finds_no_fault(name: str, arguments: tuple[Any, ...]) -> None:
    """Schema and aliasing hold, and shapes without values are those with values."""
    operator = getattr(ours, name).default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_the_form_with_outputs_is_the_same(name: str, arguments: tuple[Any, ...]) -> None:
    expected = results(name, arguments)
    outs = [torch.full_like(value, 7) for value in expected]
    names = ["out"] if len(outs) == 1 else [f"out{i}" for i in range(len(outs))]
    got = getattr(ours, name).out(*arguments, **dict(zip(names, outs, strict=True)))
    for out, value, given in zip(
        outs, expected, [got] if isinstance(got, Tensor) else got, strict=True
    ):
        assert given is out and torch.equal(out, value)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_results_are_contiguous_for_any_layout_of_the_inputs(
    name: str, arguments: tuple[Any, ...]
) -> None:
    turned = tuple(
        a.to(memory_format=torch.channels_last) if a is IMAGES or a is KERNELS else a
        for a in arguments
    )
    assert all(value.is_contiguous() for value in results(name, turned))


def test_importing_again_does_no_harm() -> None:
    again = importlib.reload(operators)
    assert torch.equal(again.ours.relu(IMAGES), IMAGES.relu())
