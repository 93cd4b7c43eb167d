"""Devices that end at work: killed by their memory limit, cut off, or nobody knows why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_server.coordinator import run_round
from broker_server.life import Life
from broker_server.processes import Processes
from broker_server.work import Answer
from edge_runtime.errors import FleetError
from edge_runtime.protocol.messages import Assign, Welcome
from tests.broker_server.exchange_stage import DEADLINE_S, REJOIN_S, Server, forget
from tests.broker_server.scripted_device import HELLO, Device
from tests.broker_server.scripted_fleet import Fleet, experiment

BACK_S = 1.0  # until a process is there again


class Mortal(Device):
    """Ends at its work in the first `lives` lives, and counts it as one more kill, or does not."""

    def __init__(self, server: Server, name: str, kills: int = 0, lives: int = 1) -> None:
        super().__init__(server.world, name, server.model, ord(name))
        self.lives, self.rises = lives, 1
        self.back_after_s = BACK_S
        self.died: Callable[[], None] = lambda: None
        self.hello = dataclasses.replace(HELLO, memory_kills=kills)

    def work(self, assign: Assign) -> None:
        if self.lives == 0:
            return super().work(assign)
        self.lives -= 1
        kills = self.hello.memory_kills + self.rises
        self.hello = dataclasses.replace(self.hello, memory_kills=kills)
        self.link.kill()
        self.died()
        self.back_s = self.world.now_s + self.back_after_s


class Host:
    """What an emulation's host knows of kills."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def killed(self) -> list[str]:
        names, self.names = self.names, []
        return names


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def play(server: Server, *devices: Device, number: int = 1) -> dict[str, Answer]:
    server.gather(len(devices))
    return server.run(devices, number)


def test_a_count_that_rose_is_a_kill_and_ends_the_work(server: Server) -> None:
    mortal, other = Mortal(server, "a"), server.device("b")
    began_s = server.world.now_s
    answers = play(server, mortal, other)
    assert answers["a"] == Answer("killed", "killed by its memory limit with 2 experts")
    server.assert_ok(answers, other)
    # It is welcome again, and gets no second try: the round goes on without it at once.
    mortal.step()
    assert len(mortal.got(Assign)) == 1 and len(mortal.got(Welcome)) == 2
    assert server.world.now_s - began_s < BACK_S + 1 < REJOIN_S
    assert server.roster.present == ["a", "b"]
    assert server.exchange.restarted["a"] == "killed"
    forget([mortal, other])
    server.assert_ok(server.run([mortal, other], 2), mortal, other)
    assert "a" not in server.exchange.restarted


def test_the_limit_is_that_of_its_last_report(server: Server) -> None:
    mortal = Mortal(server, "a", lives=0)
    prepare = mortal.prepare

    def prepared(assign: Assign) -> None:
        prepare(assign)
        mortal.change_report(telemetry={"memory_limit_mib": 48.0})

    mortal.prepare = prepared  # type: ignore[method-assign]
    assert play(server, mortal)["a"].status == "ok"
    mortal.lives = 1
    answer = server.run([mortal], 2)["a"]
    assert answer == Answer("killed", "killed by its memory limit of 48 MiB with 2 experts")


@pytest.mark.parametrize(("kills", "rises"), [(0, 0), (3, 0), (-1, 0), (-1, 1), (3, -1), (0, -1)])
def test_any_other_end_and_it_gets_its_work_again(server: Server, kills: int, rises: int) -> None:
    """The count is as before, or there is none, or it is another group's."""
    mortal = Mortal(server, "a", kills)
    mortal.rises = rises
    answers = play(server, mortal)
    assert len(mortal.got(Assign)) == 2
    server.assert_ok(answers, mortal)
    known = rises == 0 and kills >= 0
    assert answers["a"].observed.restarted == (not known)
    assert server.exchange.restarted["a"] == ("other" if known else "unknown")


def test_one_that_ends_twice_at_the_same_work_is_suspected(server: Server) -> None:
    """The count begins anew where each process has a new group."""
    mortal = Mortal(server, "a", lives=2)
    mortal.rises = 0
    answer = play(server, mortal)["a"]
    assert answer.status == "ok" and answer.observed.restarted
    assert len(mortal.got(Assign)) == 3


def test_a_kill_that_is_heard_after_the_round_is_known_too(server: Server) -> None:
    mortal, other = Mortal(server, "a"), server.device("b")
    mortal.back_after_s = REJOIN_S + 5
    answers = play(server, mortal, other)
    assert answers["a"].status == "gone" and answers["a"].observed.vanished
    server.gather(2)
    assert server.exchange.restarted == {"a": "killed"}


def test_a_kill_between_two_rounds_costs_no_answer(server: Server) -> None:
    idle, other = Mortal(server, "a", lives=0), server.device("b")
    play(server, idle, other)
    idle.hello = dataclasses.replace(idle.hello, memory_kills=1)
    idle.link.kill()
    idle.back_s = server.world.now_s + BACK_S
    server.exchange.gather(3, 2 * BACK_S)
    forget([idle, other])
    server.assert_ok(server.run([idle, other], 2), idle, other)


def test_a_connection_that_was_renewed_is_no_kill(server: Server) -> None:
    """Its group may have killed another process; this one knows the session."""
    mortal = Mortal(server, "a")
    mortal.died = lambda: setattr(
        mortal, "hello", dataclasses.replace(mortal.hello, session="s", memory_kills=5)
    )
    server.assert_ok(play(server, mortal), mortal)


# --- what the host of an emulation knows ----------------------------------------------------------


def hosted(tmp_path: Path) -> tuple[Server, Host]:
    host = Host()
    return Server(tmp_path, life=Life(killed=host.killed)), host


def test_the_host_tells_of_a_kill_before_the_device_is_back(tmp_path: Path) -> None:
    server, host = hosted(tmp_path)
    mortal, other = Mortal(server, "a"), server.device("b")
    mortal.back_after_s = DEADLINE_S
    mortal.died = lambda: host.names.append("a")
    began_s = server.world.now_s
    answers = play(server, mortal, other)
    assert answers["a"] == Answer("killed", "killed by its memory limit with 2 experts")
    assert server.world.now_s - began_s < 1
    assert server.roster.present == ["b"]


def test_a_kill_that_the_host_told_of_is_not_counted_again(tmp_path: Path) -> None:
    """The device is back when the next round has begun: that work did not kill it."""
    server, host = hosted(tmp_path)
    mortal, slow = Mortal(server, "a"), server.device("b", delay_s=4 * BACK_S)
    mortal.died = lambda: host.names.append("a")
    assert play(server, mortal, slow)["a"].status == "killed"
    forget([mortal, slow])
    server.gather(2)
    assert server.exchange.restarted == {"a": "killed"}
    answers = server.run([mortal, slow], 2)
    server.assert_ok(answers, mortal, slow)
    assert not answers["a"].observed.restarted
    # The count is known all the same: one more is one more kill.
    mortal.lives, mortal.died = 1, lambda: None
    assert server.run([mortal, slow], 3)["a"].status == "killed"


def test_a_device_that_was_given_work_while_it_was_dead(tmp_path: Path) -> None:
    server, host = hosted(tmp_path)
    mortal = Mortal(server, "a", lives=0)
    play(server, mortal)
    forget([mortal])
    host.names.append("a")
    mortal.link.kill()
    mortal.hello = dataclasses.replace(mortal.hello, memory_kills=1)
    mortal.back_s = server.world.now_s + BACK_S
    answers = server.run([mortal], 2)
    server.assert_ok(answers, mortal)
    assert not answers["a"].observed.restarted


# --- a host that sees all ends --------------------------------------------------------------------


@pytest.mark.parametrize(("kills", "rises"), [(0, 0), (-1, 0), (3, -1), (0, 1)])
@pytest.mark.parametrize("lives", [1, 2, 3])
def test_a_host_that_sees_all_ends_suspects_none_that_it_did_not_name(
    tmp_path: Path, kills: int, rises: int, lives: int
) -> None:
    server = Server(tmp_path, life=Life(sees_ends=True))
    mortal = Mortal(server, "a", kills, lives)
    mortal.rises = rises
    answers = play(server, mortal)
    server.assert_ok(answers, mortal)
    assert not answers["a"].observed.restarted
    assert server.exchange.restarted == {"a": "other"}


@pytest.mark.parametrize(("sees_ends", "too_many"), [(True, 0), (False, 2)])
def test_a_resumed_run_of_such_a_host_suspects_none(
    tmp_path: Path, sees_ends: bool, too_many: int
) -> None:
    """All processes are new then, and none of them ended at the work before."""
    before = Fleet(tmp_path / "before", experiment()).run(1)
    suspect = dataclasses.replace(before.paces["a"], suspect=2)
    state = dataclasses.replace(before, paces={**before.paces, "a": suspect})
    fleet = Fleet(tmp_path / "after", experiment(), life=Life(sees_ends=sees_ends))
    pace = fleet.run(2, state).paces["a"]
    assert (pace.suspect, pace.too_many) == (0, too_many)


def test_such_a_host_still_tells_of_kills(tmp_path: Path) -> None:
    host = Host()
    server = Server(tmp_path, life=Life(killed=host.killed, sees_ends=True))
    mortal, other = Mortal(server, "a"), server.device("b")
    mortal.died = lambda: host.names.append("a")
    assert play(server, mortal, other)["a"].status == "killed"
    server.gather(2)
    assert server.exchange.restarted == {"a": "killed"}


def test_a_missed_quorum_tells_what_the_host_knows(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment(round={"quorum": 1.0}))
    lost = fleet.devices["a"]
    lost.work = lambda assign: lost.link.kill()  # type: ignore[method-assign]
    told = dataclasses.replace(fleet.federation, incidents=lambda: ["9.0 s: a was cut off"])
    with pytest.raises(FleetError, match=r"a: disconnected and did .*; 9\.0 s: a was cut off"):
        run_round(fleet.start, told)


def test_a_kill_is_not_forgotten_for_a_power_cut_after_it() -> None:
    for sees_ends in (False, True):
        processes = Processes(sees_ends)
        assert processes.greeted("a", 4, fresh=True, there=False) != "killed"
        processes.killed("a")
        for _ in range(3):
            assert processes.greeted("a", 5, fresh=True, there=False) == "other"
        assert processes.restarted == {"a": "killed"}
        processes.given_work(["a"])
        assert processes.greeted("a", 5, fresh=True, there=False) == "other"
        assert processes.restarted == {"a": "other"}


def test_a_kill_is_one_though_nobody_is_waited_for(tmp_path: Path) -> None:
    """Its last will comes before the host has seen its end."""
    host = Host()
    server = Server(tmp_path, life=Life(killed=host.killed))
    mortal = Mortal(server, "a")
    mortal.back_after_s = DEADLINE_S
    mortal.died = lambda: host.names.append("a")
    server.gather(1)
    assert server.run([mortal], rejoin_s=0.0)["a"].status == "killed"


def test_what_ended_a_process() -> None:
    """A first hello tells nothing; a second one of the same process is no restart."""
    processes = Processes()
    assert processes.greeted("a", 4, fresh=True, there=False) == "unknown"
    assert processes.greeted("a", 4, fresh=True, there=True) is None
    assert processes.greeted("a", 4, fresh=False, there=False) is None
    assert processes.greeted("a", 4, fresh=True, there=False) == "other"
    assert processes.greeted("a", 5, fresh=True, there=False) == "killed"
    assert processes.greeted("a", 6, fresh=True, there=True) == "killed"  # its will was slow
    assert processes.greeted("b", 6, fresh=True, there=False) == "unknown"
    assert processes.restarted == {"a": "killed", "b": "unknown"}
    processes.given_work(["a", "c"])
    assert processes.restarted == {"b": "unknown"}
