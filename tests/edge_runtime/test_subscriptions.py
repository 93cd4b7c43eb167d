"""What is asked for again, and what a link waits for."""

from __future__ import annotations

from edge_runtime.transport.subscriptions import Subscriptions


def test_only_patterns_decide_whether_all_is_in_place() -> None:
    wanted = Subscriptions()
    assert wanted.in_place
    wanted.add("p/+")
    wanted.listen(["t2", "t1"])
    wanted.add("q")
    assert wanted.all() == ["p/+", "q", "t2", "t1"]
    wanted.asked(7, wanted.all())
    wanted.answered(8, [True] * 4)  # nobody asked
    assert not wanted.in_place
    wanted.answered(7, [True, True, False, False])
    assert wanted.in_place and wanted.is_granted("q")
    wanted.answered(7, [False] * 4)  # a second answer
    assert wanted.in_place


def test_a_connection_takes_its_answers_with_it() -> None:
    wanted = Subscriptions()
    wanted.add("p")
    wanted.asked(1, ["p"])
    wanted.lost()
    wanted.answered(1, [True])
    assert not wanted.in_place
    wanted.asked(1, ["p"])
    wanted.answered(1, [True])
    assert wanted.in_place
    wanted.lost()
    assert not wanted.in_place


def test_a_refusal_counts_until_the_pattern_is_added_again() -> None:
    wanted = Subscriptions()
    wanted.add("p")
    wanted.asked(1, ["p"])
    wanted.answered(1, [False])
    assert wanted.is_refused("p") and not wanted.is_granted("p")
    wanted.remove("p")
    assert wanted.in_place
    wanted.add("p")
    assert not wanted.is_refused("p")


def test_what_is_unlistened_is_not_asked_for_again() -> None:
    wanted = Subscriptions()
    wanted.listen(["a", "b", "c"])
    wanted.listen(["b"])
    wanted.unlisten(["a", "unknown"])
    assert wanted.all() == ["b", "c"]


def test_a_refused_topic_is_named_while_it_is_wanted() -> None:
    wanted = Subscriptions()
    wanted.listen(["a", "b", "c"])
    wanted.asked(1, ["a", "b", "c"])
    assert wanted.silent == ""
    wanted.unlisten(["b"])
    wanted.answered(1, [True, False, False])
    assert wanted.silent == "c"
    wanted.unlisten(["c"])
    assert wanted.silent == ""
    wanted.listen(["c"])
    wanted.asked(2, ["c"])
    wanted.answered(2, [False])
    assert wanted.silent == "c"
    wanted.lost()
    assert wanted.silent == ""
