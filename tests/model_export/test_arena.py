"""Tensors in an arena: those that are alive together never overlap, and little is wasted."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from model_export.arena import lowest_place

ALIGNMENT = 16


@dataclass(eq=False)
class Spec:
    """What the plan knows of a tensor."""

    nbytes: int
    lifetime: tuple[int, int]
    allocated_memory: int = 0

    def realign(self, alignment: int) -> None:
        self.allocated_memory = -(-self.nbytes // alignment) * alignment


specs = st.builds(
    lambda size, first, length: Spec(size, (first, first + length)),
    st.integers(0, 100),
    st.integers(0, 10),
    st.integers(0, 5),
)


@given(st.lists(specs, max_size=12))
def test_no_two_share_memory_while_both_are_alive(tensors: list[Spec]) -> None:
    plan = lowest_place(ALIGNMENT, tensors, None, None)
    assert plan.spec_dict.keys() == set(tensors)
    ends = [0]
    for i, tensor in enumerate(tensors):
        start = plan.spec_dict[tensor].mem_offset
        end = start + tensor.allocated_memory
        assert start % ALIGNMENT == 0 and plan.spec_dict[tensor].mem_id == 1
        ends.append(end)
        for other in tensors[:i]:
            both = (
                other.lifetime[0] <= tensor.lifetime[1] and tensor.lifetime[0] <= other.lifetime[1]
            )
            other_start = plan.spec_dict[other].mem_offset
            apart = other_start >= end or start >= other_start + other.allocated_memory
            assert apart or not both
    assert plan.bufsizes == [0, max(ends)]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.booleans())
def test_nothing_is_wasted_where_all_or_none_meet(sizes: list[int], together: bool) -> None:
    tensors = [Spec(size, (0, 9) if together else (i, i)) for i, size in enumerate(sizes)]
    plan = lowest_place(ALIGNMENT, tensors, None, None)
    rounded = [tensor.allocated_memory for tensor in tensors]
    assert plan.bufsizes[1] == (sum(rounded) if together else max(rounded))


def test_a_gap_is_filled() -> None:
    large, first, second = Spec(64, (0, 1)), Spec(32, (2, 5)), Spec(32, (1, 5))
    plan = lowest_place(ALIGNMENT, [large, first, second], None, None)
    # `first` takes the lower half of what `large` leaves; `second` met `large`.
    assert plan.spec_dict[first].mem_offset == 0 and plan.spec_dict[second].mem_offset == 64
    small = Spec(32, (2, 5))
    plan = lowest_place(ALIGNMENT, [large, first, second, small], None, None)
    assert plan.spec_dict[small].mem_offset == 32 and plan.bufsizes == [0, 96]
