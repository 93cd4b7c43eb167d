"""Another order of the same calls: never a higher peak, always the same values."""

from __future__ import annotations

import operator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import Graph, GraphModule, Node

from model_export.operators import ours
from model_export.passes.schedule import peak_bytes, schedule

aten = torch.ops.aten
X = torch.arange(2.0)


class Builder:
    """A graph call by call, with the shapes that passes read."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.input = self.graph.placeholder("x")
        self.input.meta["val"] = X

    def call(self, target: object, *arguments: object) -> Node:
        node = self.graph.call_function(target, arguments)  # type: ignore[arg-type]
        node.meta["val"] = target(*torch.fx.node.map_arg(arguments, lambda n: n.meta["val"]))  # type: ignore[operator,arg-type]
        return node

    def finish(self, *results: Node) -> GraphModule:
        self.graph.output(tuple(results))
        return GraphModule(nn.Module(), self.graph)


def alive_bytes(graph: GraphModule) -> int:
    """The peak by its definition, for graphs without views or calls of several results."""
    nodes = list(graph.graph.nodes)
    calls = [i for i, node in enumerate(nodes) if node.op == "call_function"]
    results = nodes[-1].all_input_nodes

    def lives(i: int, now: int) -> bool:
        return i <= now <= max([i, *(nodes.index(user) for user in nodes[i].users)])

    return max(
        sum(nodes[i].meta["val"].nbytes for i in calls if lives(i, now) and nodes[i] not in results)
        for now in calls
    )


@given(data=st.data())
@settings(max_examples=60)
def test_never_a_higher_peak(data: st.DataObject) -> None:
    """Calls that join one or two earlier values, so that sizes differ."""
    builder = Builder()
    values = [builder.input]
    for _ in range(data.draw(st.integers(1, 9))):
        reads = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True))
        values.append(builder.call(aten.cat.default, reads))
    results = data.draw(st.lists(st.sampled_from(values[1:]), min_size=1, unique=True))
    graph = builder.finish(*results)
    expected, before, names = graph(X), peak_bytes(graph), {node.name for node in graph.graph.nodes}
    assert before == alive_bytes(graph)
    schedule(graph)
    graph.graph.lint()
    assert {node.name for node in graph.graph.nodes} == names
    assert peak_bytes(graph) == alive_bytes(graph) <= before
    torch.testing.assert_close(graph(X), expected, rtol=0, atol=0)


def test_large_values_one_after_another() -> None:
    builder = Builder()
    large = [builder.call(aten.repeat.default, builder.input, [1000 + i]) for i in range(4)]
    small = [builder.call(aten.mean.default, value) for value in large]
    graph = builder.finish(builder.call(aten.stack.default, small))
    assert peak_bytes(graph) == sum(value.meta["val"].nbytes for value in large) + 4
    schedule(graph)
    assert peak_bytes(graph) == large[-1].meta["val"].nbytes + 4 * 4


def test_an_order_with_little_to_gain_stays() -> None:
    """One of a hundred pieces could go earlier: not worth leaving the layers' own order."""
    builder = Builder()
    held = builder.call(aten.repeat.default, builder.input, [100])
    spare = builder.call(aten.repeat.default, builder.input, [1])
    other = builder.call(aten.repeat.default, held, [1])
    graph = builder.finish(
        builder.call(aten.mean.default, other), builder.call(aten.mean.default, spare)
    )
    order = [node.name for node in graph.graph.nodes]
    schedule(graph)
    assert [node.name for node in graph.graph.nodes] == order


def test_views_hold_what_they_show_and_unread_results_die_at_once() -> None:
    builder = Builder()
    x = builder.call(aten.repeat.default, builder.input, [1, 4, 1, 3])  # [1, 4, 1, 6], 96 bytes
    norm = builder.call(ours.group_norm.default, x, None, None, 2, 1e-5, False)
    y = builder.call(operator.getitem, norm, 0)
    view = builder.call(aten.reshape.default, y, [24])
    shape_only = builder.call(aten.mean.default, builder.input)
    graph = builder.finish(builder.call(aten.mul.Tensor, view, shape_only))
    statistics = 2 * 8
    assert peak_bytes(graph) == 96 + 96 + statistics  # while the norm runs
    schedule(graph)
    assert peak_bytes(graph) == 96 + 96 + statistics


def test_results_of_the_program_lie_elsewhere() -> None:
    builder = Builder()
    large = builder.call(aten.repeat.default, builder.input, [1000])
    graph = builder.finish(large, builder.call(aten.mean.default, large))
    assert peak_bytes(graph) == 0
