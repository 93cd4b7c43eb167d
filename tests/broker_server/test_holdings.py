"""What a device is known to hold, against a device that keeps one version of each part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_server.publishing.holdings import Holdings, frames_of
from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.messages import MAX_HELD, Artifact, Assign, BlobRef
from tests.broker_server.sample_model import make_assign


def name_of(kind: str, version: int) -> bytes:
    return digest(f"{kind} {version}".encode())


def work(experts: list[int], version: int, program: int = 0, base: int | None = None) -> Assign:
    """Work on parts of a version, from those of another, if that is said."""
    frame = BlobRef(digest(b"frame"), 10)
    kinds = ["backbone", "gate", *(f"expert:{e}" for e in experts)]
    parts = {
        kind: Artifact(
            name_of(kind, version), b"" if base is None else name_of(kind, base), [frame]
        )
        for kind in kinds
    }
    return make_assign(
        experts, artifacts={"program": Artifact(name_of("program", program), b"", []), **parts}
    )


def test_who_was_never_heard_of_holds_nothing() -> None:
    assert list(Holdings()["a"]) == []


def test_work_that_is_done_leaves_its_contents() -> None:
    holdings = Holdings()
    holdings.worked("a", work([1, 3], 1), [])
    names = [name_of(kind, 1) for kind in ("backbone", "gate", "expert:1", "expert:3")]
    assert set(holdings["a"]) == {name_of("program", 0), *names}
    assert list(holdings["b"]) == []


def test_what_a_device_lets_go_is_gone() -> None:
    holdings = Holdings()
    holdings.worked("a", work([1, 3], 1), [name_of("expert:1", 1), name_of("program", 7)])
    assert name_of("expert:1", 1) not in holdings["a"]
    assert name_of("expert:3", 1) in holdings["a"]


def test_what_a_device_says_is_all_that_it_holds() -> None:
    holdings = Holdings()
    holdings.worked("a", work([1], 1), [])
    holdings.say("a", [name_of("program", 0), name_of("gate", 1)])
    assert set(holdings["a"]) == {name_of("program", 0), name_of("gate", 1)}
    # Of what kind it is, is still known: the next version takes its place.
    holdings.worked("a", work([1], 2), [])
    assert name_of("gate", 1) not in holdings["a"]
    holdings.say("a", [])
    assert list(holdings["a"]) == []


def test_a_base_makes_way_for_what_was_built_on_it() -> None:
    """Also where only the device said that it has it, so that its kind is not known."""
    holdings = Holdings()
    holdings.say("a", [name_of("gate", 1), name_of("expert:5", 1)])
    holdings.worked("a", work([1], 2, base=1), [])
    assert name_of("gate", 1) not in holdings["a"]
    assert {name_of("gate", 2), name_of("expert:5", 1)} <= set(holdings["a"])


def test_what_is_remembered_is_bounded() -> None:
    holdings = Holdings()
    for program in range(MAX_HELD + 50):
        holdings.worked("a", work([1], 1, program), [])
    assert len(holdings["a"]) == MAX_HELD
    assert name_of("program", MAX_HELD + 49) in holdings["a"]


def test_frames_that_two_parts_share_are_taken_once() -> None:
    holdings = Holdings()
    holdings.worked("a", work([1, 3], 1), [])
    holdings.worked("a", work([1, 3], 2), [])
    holdings.worked("b", make_assign([1]), [])
    assert holdings.taken_bytes == {"a": 20, "b": 0}


def test_who_may_have_taken_other_frames_is_told_apart() -> None:
    """Late with one round, under way with another, or planned anew."""
    holdings = Holdings()
    for client in ("prompt", "late", "busy", "again"):
        holdings.given(client)
    for client in ("prompt", "busy"):
        holdings.worked(client, work([1], 1), [])
    holdings.given("again")
    holdings.worked("again", work([1], 1), [])
    assert holdings.sure_bytes == {"prompt": 10, "busy": 10}
    for client in ("prompt", "late", "busy"):
        holdings.given(client)
    for client in ("prompt", "late"):
        holdings.worked(client, work([1], 2), [])
    assert holdings.sure_bytes == {"prompt": 20}


def test_the_frames_of_work_are_those_of_all_its_contents() -> None:
    assert len(frames_of(work([1, 3], 1))) == 4
    assert frames_of(make_assign([1, 3])) == []


ROUNDS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
        st.integers(0, 2),  # program
        st.sets(st.sampled_from(["backbone", "gate", "expert:0", "expert:3", "program"])),
        st.booleans(),  # the device says hello
    ),
    max_size=15,
)


@given(ROUNDS)
def test_it_is_what_the_device_holds(
    rounds: list[tuple[list[int], int, set[str], bool]],
) -> None:
    holdings, parts, programs = Holdings(), dict[str, bytes](), set[bytes]()
    for version, (experts, program, lost, hello) in enumerate(rounds, 1):
        experts.sort()
        assign = work(experts, version, program)
        for kind in ("backbone", "gate", *(f"expert:{e}" for e in experts)):
            parts[kind] = name_of(kind, version)
        programs.add(name_of("program", program))
        dropped = [parts.pop(kind) for kind in sorted(lost) if kind in parts]
        if "program" in lost:
            dropped += [name_of("program", program)]
            programs.discard(name_of("program", program))
        holdings.worked("a", assign, dropped)
        held = {*parts.values(), *programs}
        assert set(holdings["a"]) == held
        if hello:
            holdings.say("a", sorted(held))
            assert set(holdings["a"]) == held
