"""Who is in the federation: what a hello must say, and who is there."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_args

import pytest

from broker_server import roster as roster_module
from broker_server.assignment import Problem
from broker_server.roster import KERNELS, MAX_SAMPLES, Roster
from broker_server.train_settings import Train
from edge_runtime.protocol.messages import CHUNK_BYTES, Hello, Reject, Welcome
from edge_runtime.trainers import TRAINERS
from tests.broker_server.sample_model import SPEC
from tests.broker_server.scripted_device import HELLO

WELCOME = Welcome("s", CHUNK_BYTES, retained=True)


def test_the_trainers_are_the_same_everywhere() -> None:
    """What a device may train with, what the server has programs for, what a run may ask for."""
    settings = Train.model_fields["trainer"]
    assert list(TRAINERS) == list(KERNELS) == list(get_args(settings.annotation))
    assert settings.default == next(iter(TRAINERS))


def hello(**fields: Any) -> Hello:
    return dataclasses.replace(HELLO, **fields)


@pytest.fixture
def roster() -> Roster:
    return Roster(SPEC, "s")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"labels": 1},
        {"samples": 1},
        {"samples": MAX_SAMPLES},
        {"test_samples": 0},
        {"session": "old"},
    ],
)
def test_devices_that_fit_the_model_are_welcome(roster: Roster, fields: dict[str, Any]) -> None:
    assert roster.admit("a", hello(**fields)) == WELCOME
    assert roster["a"].hello == hello(**fields) and "a" in roster
    assert roster.present == ["a"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"shape": [8]}, r"shape \[8\], model 'digits' takes \[4\]"),
        ({"shape": [4, 1]}, "shape"),
        ({"shape": []}, "shape"),
        ({"labels": 4}, "labels go up to 3, the model has 3 classes"),
        ({"labels": 0}, "labels"),
        ({"labels": -1}, "labels"),
        ({"samples": 0}, "0 training"),
        ({"samples": -5}, "-5 training"),
        ({"samples": MAX_SAMPLES + 1}, "training"),
        ({"samples": 2**62}, "training"),
        ({"test_samples": -1}, "-1 test"),
        ({"trainer": "torch"}, "trainer is 'torch', this server has programs for native and exec"),
        ({"trainer": ""}, "trainer is ''"),
        ({"trainer": "x" * 1000}, r"^.{,150}$"),
        ({"codecs": []}, "does not know the codec 'raw'"),
        ({"codecs": ["topk", "zlib"]}, "does not know the codec 'raw'"),
    ],
)
def test_others_are_told_why_not(roster: Roster, fields: dict[str, Any], why: str) -> None:
    answer = roster.admit("a", hello(**fields))
    assert isinstance(answer, Reject) and answer.session == "s"
    assert re.search(why, answer.reason)
    assert "a" not in roster and roster.present == []


def test_what_updates_are_coded_with_must_be_known() -> None:
    roster = Roster(SPEC, "s", uplink="topk")
    answer = roster.admit("a", hello(codecs=["raw", "zlib"]))
    assert isinstance(answer, Reject) and re.search(r"'topk'.*wire\.uplink", answer.reason)
    assert isinstance(roster.admit("a", hello(codecs=["raw", "topk"])), Welcome)


def test_devices_are_told_of_the_broker() -> None:
    roster = Roster(SPEC, "s", chunk_bytes=5000, retained=False)
    assert roster.admit("a", HELLO) == Welcome("s", 5000, retained=False)


def test_what_all_know_who_are_there(roster: Roster) -> None:
    assert roster.shared_codecs == set()
    for name, codecs in {"a": ["raw", "zlib", "zstd"], "b": ["raw", "zstd"], "c": ["raw"]}.items():
        roster.admit(name, hello(codecs=codecs))
    assert roster.shared_codecs == {"raw"}
    roster.leave("c")
    assert roster.shared_codecs == {"raw", "zstd"}


def test_a_trainers_name_says_which_kernels_its_programs_call(roster: Roster) -> None:
    for name, kernels in (("native", "native"), ("executorch", "stock")):
        roster.admit("a", hello(trainer=name))
        assert roster["a"].kernels == kernels


def test_every_sample_count_that_is_admitted_can_be_assigned() -> None:
    """Or one hello would end the server in the round's first step."""
    Problem([[1.0, 1.0]], [MAX_SAMPLES], [1], [0.0, 0.0], [1.0, 1.0], 0)  # type: ignore[arg-type]


def test_a_member_that_no_longer_fits_is_out(roster: Roster) -> None:
    roster.admit("a", HELLO)
    roster.admit("a", hello(samples=0))
    assert "a" not in roster and roster.present == []


def test_who_leaves_is_remembered_and_may_return(roster: Roster) -> None:
    roster.admit("a", HELLO)
    roster.leave("a")
    assert roster.present == [] and roster["a"].hello == HELLO and "a" in roster
    roster.admit("a", hello(samples=11))
    assert roster.present == ["a"] and roster["a"].hello.samples == 11


def test_a_stranger_may_leave(roster: Roster) -> None:
    roster.leave("nobody")
    assert "nobody" not in roster


def test_names_ascend_whoever_came_first(roster: Roster) -> None:
    for name in ("c", "a", "d", "b"):
        roster.admit(name, HELLO)
    roster.leave("b")
    assert roster.present == ["a", "c", "d"]


def test_invented_names_do_not_fill_the_memory(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "MAX_CLIENTS", 2)
    assert [type(roster.admit(name, HELLO)) for name in "abc"] == [Welcome, Welcome, Reject]
    assert roster.admit("b", HELLO) == WELCOME
    assert roster.present == ["a", "b"]


def test_who_left_without_having_worked_makes_room(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "MAX_CLIENTS", 3)
    for name in "abc":
        roster.admit(name, HELLO)
    roster.worked("a")
    for name in "acb":
        roster.leave(name)
    assert isinstance(roster.admit("d", hello(samples=0)), Reject)  # no reason to forget anyone
    assert all(name in roster for name in "abc")
    assert roster.admit("d", HELLO) == WELCOME
    assert "c" not in roster and "a" in roster and "b" in roster  # the one that left first
    assert roster.admit("b", HELLO) == WELCOME  # it is back, and stays
    assert isinstance(roster.admit("e", HELLO), Reject)
    assert roster.admit("a", HELLO) == WELCOME
    assert roster.present == ["a", "b", "d"] and roster.count == 3


def test_a_device_that_worked_and_was_refused_is_as_new(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "MAX_CLIENTS", 1)
    roster.admit("a", HELLO)
    roster.worked("a")
    roster.admit("a", hello(samples=0))
    assert roster.count == 0
    roster.admit("a", HELLO)
    roster.leave("a")
    assert roster.admit("b", HELLO) == WELCOME and "a" not in roster
