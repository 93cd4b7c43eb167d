"""Pooling as operators of the native device runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from model_export.operators import ours
from model_export.passes.graph import Rule, Site, bound, shape, value

_aten = torch.ops.aten


def _mean(site: Site, node: Node) -> Node | None:
    named = bound(node)
    x, rank = named["self"], value(named["self"]).dim()
    if rank not in (3, 4) or named["keepdim"] or named["dtype"] is not None:
        return None
    if named["dim"] is None or sorted(axis % rank for axis in named["dim"]) != [*range(2, rank)]:
        return None
    return site.call(ours.mean_pool.default, site.images(x))


def _mean_backward(site: Site, node: Node) -> Node | None:
    """A gradient [N, C, 1, 1] that is spread over planes and divided by their size."""
    spread, divisor = node.args
    if not isinstance(spread, Node) or spread.target != _aten.expand.default:
        return None
    source, sizes = spread.args[0], shape(spread)
    planes = sizes[:2] + [1] * len(sizes[2:])
    if len(sizes) not in (3, 4) or shape(source) != planes:
        return None
    size = sizes if len(sizes) == 4 else [*sizes[:2], 1, sizes[2]]
    if divisor != size[2] * size[3]:
        return None
    assert isinstance(source, Node)
    dx = site.call(ours.mean_pool_backward.default, site.reshape(source, sizes[:2]), size)
    return site.reshape(dx, sizes)


def _avg_pool(site: Site, node: Node) -> Node | None:
    named = bound(node)
    window = _window(named)
    if value(named["self"]).dim() != 4 or window is None:
        return None
    return site.call(ours.avg_pool2d.default, named["self"], *window)


def _avg_pool_backward(site: Site, node: Node) -> Node | None:
    named = bound(node)
    window, size = _window(named), shape(named["self"])
    if len(size) != 4 or window is None:
        return None
    return site.call(ours.avg_pool2d_backward.default, named["grad_output"], size, *window)


def _window(named: dict[str, Any]) -> tuple[list[int], list[int], list[int]] | None:
    """(kernel, stride, padding), unless the mean is over other than whole windows."""
    if named["ceil_mode"] or not named["count_include_pad"]:
        return None
    if named["divisor_override"] is not None:
        return None
    kernel = _pair(named["kernel_size"])
    return kernel, _pair(named["stride"]) or kernel, _pair(named["padding"])


def _adaptive_pool(site: Site, node: Node) -> Node | None:
    x = node.args[0]
    kernel = _even_windows(shape(x), shape(node))
    if kernel is None:
        return None
    return site.call(ours.avg_pool2d.default, x, kernel, kernel, [0, 0])


def _adaptive_pool_backward(site: Site, node: Node) -> Node | None:
    dy, x = node.args
    kernel = _even_windows(shape(x), shape(dy))
    if kernel is None:
        return None
    return site.call(ours.avg_pool2d_backward.default, dy, shape(x), kernel, kernel, [0, 0])


def _even_windows(big: list[int], small: list[int]) -> list[int] | None:
    """The window that takes planes of size `big` to `small`, where the sizes divide evenly."""
    if len(big) != 4 or any(b % s for b, s in zip(big[2:], small[2:], strict=True)):
        return None
    return [b // s for b, s in zip(big[2:], small[2:], strict=True)]


def _max_pool(site: Site, node: Node) -> list[Node] | None:
    named = bound(node)
    if named["ceil_mode"] or value(named["self"]).dim() != 4:
        return None
    kernel = _pair(named["kernel_size"])
    stride = _pair(named["stride"]) or kernel
    padding, dilation = _pair(named["padding"]), _pair(named["dilation"])
    return site.results(ours.max_pool2d.default, named["self"], kernel, stride, padding, dilation)


def _max_pool_backward(site: Site, node: Node) -> Node | None:
    """Takes every mode: where the largest values lay is all that counts."""
    named = bound(node)
    size = shape(named["self"])
    if len(size) != 4:
        return None
    return site.call(ours.max_pool2d_backward.default, named["grad_output"], named["indices"], size)


def _pair(sizes: Sequence[int]) -> list[int]:
    """(height, width) of what may be given as one number for both, or not at all."""
    given = list(sizes)
    return given * 2 if len(given) == 1 else given


POOLING_RULES: dict[object, Rule] = {
    _aten.mean.dim: _mean,
    _aten.div.Scalar: _mean_backward,
    _aten.avg_pool2d.default: _avg_pool,
    _aten.avg_pool2d_backward.default: _avg_pool_backward,
    _aten._adaptive_avg_pool2d.default: _adaptive_pool,
    _aten._adaptive_avg_pool2d_backward.default: _adaptive_pool_backward,
    _aten.max_pool2d_with_indices.default: _max_pool,
    _aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
}
