"""Puts the calls of a graph into an order in which few tensors are alive at once.

The exporter's order is autograd's: it computes both gradients of a layer before it uses either. An
operator that frees more than it allocates, such as a weight's gradient, which is a result of the
program and lies outside of its arena, had better run as soon as it can. But autograd's order goes
through the model layer by layer, which caches like, so it stays where there is little to gain.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

Storage = tuple[Node, int]  # a call, and which of its results
_WORTH_IT = 0.97  # of the peak


def schedule(module: GraphModule) -> None:
    """Reorder the calls if that lowers the peak of what the arena must hold by 3% or more."""
    plan = _Plan(module)
    order = plan.greedy()
    if plan.peak(order) > _WORTH_IT * plan.peak(plan.calls):
        return
    last = plan.placeholders[-1]
    for node in order:
        last.append(node)
        last = node
    module.recompile()


def peak_bytes(module: GraphModule) -> int:
    """The most bytes of the arena that are alive at once, in the graph's order."""
    plan = _Plan(module)
    return plan.peak(plan.calls)


class _Plan:
    """Who makes and who reads each tensor of the arena."""

    def __init__(self, module: GraphModule) -> None:
        nodes = list(module.graph.nodes)
        self.placeholders = [node for node in nodes if node.op == "placeholder"]
        self.calls = [node for node in nodes if node.op not in ("placeholder", "output")]
        self._sizes: dict[Storage, int] = {}
        self._behind: dict[Node, tuple[Storage, ...]] = {}
        for node in self.calls:
            self._behind[node] = self._storages(node)
        (output,) = module.graph.find_nodes(op="output")
        for node in output.all_input_nodes:
            # Results lie in the caller's memory.
            for storage in self._behind.get(node, ()):
                self._sizes[storage] = 0
        # A result that nobody reads lives while its maker runs.
        self._readers: dict[Storage, set[Node]] = {storage: {storage[0]} for storage in self._sizes}
        for node in self.calls:
            for storage in self._read_by(node):
                self._readers[storage].add(node)

    def _storages(self, node: Node) -> tuple[Storage, ...]:
        """The storages behind what `node` gives; new ones unless it is a view."""
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if node.target is operator.getitem:
            assert source is not None
            return (self._behind[source][int(node.args[1])],)  # type: ignore[arg-type]
        if node.target == torch.ops.aten.reshape.default:
            assert source is not None
            return self._behind.get(source, ())
        value = node.meta["val"]
        values = value if isinstance(value, (list, tuple)) else [value]
        sizes = [v.nbytes if isinstance(v, Tensor) else 0 for v in values]
        made = {(node, i): size for i, size in enumerate(sizes)}
        self._sizes.update(made)
        return tuple(made)

    def _read_by(self, node: Node) -> set[Storage]:
        if node.target is operator.getitem:
            return set(self._behind[node])
        return {s for source in node.all_input_nodes for s in self._behind.get(source, ())}

    def peak(self, order: list[Node]) -> int:
        """The most bytes alive at once in this order."""
        walk = _Walk(self)
        return max((walk.run(node) for node in order), default=0)

    def greedy(self) -> list[Node]:
        """Of the calls that can run, always the one after which the fewest bytes are alive."""
        place = {node: i for i, node in enumerate(self.calls)}
        waits = {node: sum(n in place for n in node.all_input_nodes) for node in self.calls}
        ready = [node for node in self.calls if waits[node] == 0]
        walk, order = _Walk(self), []
        while ready:
            node = min(ready, key=lambda n: (walk.growth(n), place[n]))
            ready.remove(node)
            walk.run(node)
            order.append(node)
            for user in node.users:
                if user in place:
                    waits[user] -= 1
                    if waits[user] == 0:
                        ready.append(user)
        return order

    def made(self, node: Node) -> list[Storage]:
        return [storage for storage in self._behind[node] if storage[0] is node]

    def size(self, storage: Storage) -> int:
        return self._sizes[storage]

    def touched(self, node: Node) -> set[Storage]:
        return self._read_by(node) | set(self.made(node))

    def readers(self, storage: Storage) -> set[Node]:
        return self._readers[storage]


class _Walk:
    """Which bytes are alive while calls run one after another."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._alive = 0
        self._left = {s: set(plan.readers(s)) for n in plan.calls for s in plan.made(n)}

    def growth(self, node: Node) -> int:
        """The bytes that are alive after `node` more than before it."""
        plan = self._plan
        freed = sum(plan.size(s) for s in plan.touched(node) if self._left[s] <= {node})
        return sum(map(plan.size, plan.made(node))) - freed

    def run(self, node: Node) -> int:
        """The bytes alive while `node` runs."""
        plan = self._plan
        during = self._alive + sum(map(plan.size, plan.made(node)))
        self._alive += self.growth(node)
        for storage in plan.touched(node):
            self._left[storage].discard(node)
        return during
