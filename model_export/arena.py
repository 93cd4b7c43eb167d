"""Where each tensor lies in a program's arena: two tensors share memory if never alive at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from executorch.exir.memory_planning import (
    MemoryAlgoResult,
    MemoryPlanningAlgorithmSuite,
    SpecAllocResult,
    greedy,
)
from executorch.exir.passes import MemoryPlanningPass

_ARENA = 1  # ExecuTorch's number of the only buffer; 0 are constants


def native_planning() -> MemoryPlanningPass:
    """The smaller of ExecuTorch's own plan and `lowest_place`.

    The native trainer's weights and gradients lie in its own memory: outside of the arena.
    """
    algorithms = MemoryPlanningAlgorithmSuite([greedy, lowest_place])
    return MemoryPlanningPass(algorithms, alloc_graph_input=False, alloc_graph_output=False)


def lowest_place(
    alignment: int, specs: Sequence[Any], graph: Any, signature: Any, extra_padding: int = 0
) -> MemoryAlgoResult:
    """From the largest tensor to the smallest, each as low as it fits.

    `specs` are the tensors, whose ``lifetime`` is (first, last) node; for graphs without control
    flow, which is all that the native runtime takes.
    """
    result = MemoryAlgoResult({}, [0, 0])
    placed: list[tuple[int, int, Any]] = []  # (start, end, spec)
    for spec in specs:
        spec.realign(alignment)
    for spec in sorted(specs, key=lambda s: (-s.allocated_memory, s.lifetime[0])):
        size, start = spec.allocated_memory, 0
        for other_start, other_end, other in sorted(placed, key=lambda p: p[:2]):
            if spec.lifetime[0] > other.lifetime[1] or spec.lifetime[1] < other.lifetime[0]:
                continue
            if start + size <= other_start:
                break
            start = max(start, other_end)
        placed.append((start, start + size, spec))
        result.spec_dict[spec] = SpecAllocResult(_ARENA, 0, start)
        result.bufsizes[_ARENA] = max(result.bufsizes[_ARENA], start + size + extra_padding)
    return result
