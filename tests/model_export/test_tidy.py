"""One form for many: what `tidy` makes of views, permutes, copies and reductions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model_export.passes.tidy import tidy
from tests.model_export.traced import Function, operators, rewritten

CUBE = torch.arange(24.0).reshape(2, 3, 4)
aten = torch.ops.aten


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: aten.alias(x).detach().clone() + 1, {"aten.add": 1}),
        (lambda x: aten.lift_fresh_copy(aten.contiguous(x)) + 1, {"aten.add": 1}),
        (lambda x: aten.div.Scalar(x.expand(2, 3, 4), 1) + 1, {"aten.add": 1}),
        (lambda x: x.reshape(6, 4).view(24).unsqueeze(0).squeeze(0), {"aten.reshape": 1}),
        (lambda x: x.reshape(6, 4).reshape(2, 3, 4) + 1, {"aten.add": 1}),
        (lambda x: x.reshape(1, 24).squeeze() * 2, {"aten.reshape": 1, "aten.mul": 1}),
        (lambda x: x.transpose(0, 2).permute(2, 1, 0) + 1, {"aten.add": 1}),
        (lambda x: x.permute(1, 2, 0).permute(-1, 0, 1) + 1, {"aten.add": 1}),
        (lambda x: x.permute(1, 2, 0).transpose(0, 1), {"aten.permute": 1}),
        (lambda x: x.reshape(6, 4).t().t().t(), {"aten.reshape": 1, "aten.permute": 1}),
        (lambda x: x.unsqueeze(1).transpose(0, 1), {"aten.reshape": 1}),
        (lambda x: x.mean((1, 2), keepdim=True), {"aten.mean": 1, "aten.reshape": 1}),
        (lambda x: x.sum(0, keepdim=True), {"aten.sum": 1, "aten.reshape": 1}),
    ],
)
def test_one_form(function: Function, left: dict[str, int]) -> None:
    assert operators(rewritten(function, CUBE, by=[tidy])) == left


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(1, 2, 0),
        lambda x: x.reshape(6, 4),
        lambda x: x.sum((0, 1)),
        lambda x: x / 2,
        lambda x: x.unsqueeze(0).expand(5, 2, 3, 4) + 1,
        lambda x: x.to(torch.float64),
        lambda x: x.permute(2, 0, 1).reshape(4, 6),
    ],
)
def test_what_computes_something_stays(function: Function) -> None:
    once = rewritten(function, CUBE, by=[tidy])
    assert operators(once) == operators(rewritten(function, CUBE, by=[tidy, tidy]))
    assert operators(once).total() > 0


@given(st.lists(st.permutations(range(3)), min_size=1, max_size=5))
def test_any_chain_of_permutes_is_one_or_none(orders: list[list[int]]) -> None:
    def function(x: Tensor) -> Tensor:
        for order in orders:
            x = x.permute(order)
        return x * 2

    left = operators(rewritten(function, CUBE, by=[tidy]))
    assert left["aten.permute"] <= 1 and left.total() == 1 + left["aten.permute"]


@given(st.data())
def test_any_chain_of_views_is_one_or_none(data: st.DataObject) -> None:
    shapes = st.sampled_from([(24,), (2, 3, 4), (6, 4), (1, 24, 1), (4, 6), (2, 12)])
    chain = data.draw(st.lists(shapes, min_size=1, max_size=5))

    def function(x: Tensor) -> Tensor:
        for shape in chain:
            x = x.reshape(shape)
        return x * 2

    left = operators(rewritten(function, CUBE, by=[tidy]))
    assert left == {"aten.mul": 1, **({"aten.reshape": 1} if chain[-1] != (2, 3, 4) else {})}
