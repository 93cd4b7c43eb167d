"""Convolutions and GroupNorm as operators of the native device runtime.

One-dimensional convolutions are two-dimensional ones of height 1, and GroupNorm sees every tensor
as [N, C, 1, rest] or [N, C, H, W]; the reshapes around them cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from model_export.operators import ours
from model_export.passes.graph import Rule, Site, bound, shape, value

_aten = torch.ops.aten


def _convolution(site: Site, node: Node) -> Node | None:
    named = bound(node)
    x, weight = named["input"], named["weight"]
    if named["transposed"] or value(x).dim() not in (3, 4):
        return None
    geometry = _geometry(named)
    y = site.call(
        ours.conv2d.default, site.images(x), site.images(weight), named["bias"], *geometry, False
    )
    return site.reshape(y, shape(node))


def _convolution_backward(site: Site, node: Node) -> list[Node] | None:
    """Its three results become an operator each; what nobody uses is dropped."""
    named = bound(node)
    x, weight = named["input"], named["weight"]
    if named["transposed"] or value(x).dim() not in (3, 4):
        return None
    geometry = _geometry(named)
    dy, images, kernels = (site.images(n) for n in (named["grad_output"], x, weight))
    # dx last: x may not be needed any more when it is made.
    dweight = site.call(ours.conv2d_backward_weight.default, dy, images, shape(kernels), *geometry)
    dbias = site.call(ours.sum_channels.default, dy)
    dx = site.call(ours.conv2d_backward_input.default, dy, kernels, shape(images), *geometry)
    return [site.reshape(dx, shape(x)), site.reshape(dweight, shape(weight)), dbias]


def _geometry(named: dict[str, Any]) -> tuple[list[int], list[int], list[int], int]:
    stride, padding, dilation = (list(named[n]) for n in ("stride", "padding", "dilation"))
    if value(named["input"]).dim() == 3:
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    return stride, padding, dilation, named["groups"]


def _group_norm(site: Site, node: Node) -> list[Node]:
    named = bound(node)
    x = named["input"]
    y, mean, rstd = site.results(
        ours.group_norm.default,
        site.images(x),
        named["weight"],
        named["bias"],
        named["group"],
        named["eps"],
        False,
    )
    return [site.reshape(y, shape(x)), mean, rstd]


def _group_norm_backward(site: Site, node: Node) -> list[Node]:
    named = bound(node)
    x = named["input"]
    dx, dweight, dbias = site.results(
        ours.group_norm_backward.default,
        site.images(named["grad_out"]),
        site.images(x),
        named["mean"],
        named["rstd"],
        named["weight"],
        None,
        named["group"],
    )
    return [site.reshape(dx, shape(x)), dweight, dbias]


CONVOLUTION_RULES: dict[object, Rule] = {
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
    _aten.native_group_norm.default: _group_norm,
    _aten.native_group_norm_backward.default: _group_norm_backward,
}
