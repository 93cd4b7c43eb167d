"""Every result of a program is computed, and into memory of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model_export.passes.separate import separate
from model_export.passes.tidy import tidy
from tests.model_export.traced import Function, operators, rewritten

X = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("function", "copies"),
    [
        (lambda x: [x + 1, x + 1], 0),
        (lambda x: [y := x + 1, y], 1),
        (lambda x: [y := x + 1, y, y], 2),
        (lambda x: [x, x + 1], 1),
        (lambda x: [x, x], 2),
        (lambda x: [(x + 1).reshape(6)], 1),
        (lambda x: [y := x + 1, y.reshape(6), y.reshape(3, 2)], 2),
    ],
)
def test_copies_where_memory_would_be_shared(function: Function, copies: int) -> None:
    graph = rewritten(function, X, by=[tidy, separate])
    assert operators(graph)["aten.view_copy"] == copies
    results: list[Tensor] = graph(X)
    places = {result.untyped_storage().data_ptr() for result in results}
    assert len(places) == len(results) and X.untyped_storage().data_ptr() not in places
