"""Seconds of life: of devices that run faster than here, and that are held back."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_server.life import Life
from edge_runtime.protocol.messages import Assign, Fetch
from tests.broker_server.exchange_stage import DEADLINE_S, REJOIN_S, Server, three
from tests.broker_server.scripted_device import Device
from tests.broker_server.scripted_fleet import Fleet, experiment

SCALE = 4.0
EXACTLY = 0.3  # how often the server looks


class Held:
    """Holds devices back from `from_s` on for `seconds`, by name."""

    def __init__(self) -> None:
        self.server: Server
        self.spans: dict[str, tuple[float, float]] = {}

    def so_far_s(self, client: str) -> float:
        from_s, seconds = self.spans.get(client, (0.0, 0.0))
        return min(seconds, max(0.0, self.server.world.now_s - from_s))


def fast(tmp_path: Path) -> Server:
    return Server(tmp_path, life=Life(time_scale=SCALE))


def slowed(tmp_path: Path, scale: float = 1.0) -> tuple[Server, Held]:
    held = Held()
    held.server = Server(tmp_path, life=Life(time_scale=scale, held_s=held.so_far_s))
    return held.server, held


def test_a_deadline_is_of_life(tmp_path: Path) -> None:
    server = fast(tmp_path)
    late, *rest = three(server)
    late.delay_s = DEADLINE_S / SCALE + 1
    began_s, life_s = server.world.now_s, server.exchange.now_s()
    answers = server.run([late, *rest])
    assert answers["a"].status == "late"
    server.assert_ok(answers, *rest)
    assert server.world.now_s - began_s == pytest.approx(DEADLINE_S / SCALE, abs=EXACTLY)
    took_s = server.exchange.now_s() - life_s
    assert took_s == pytest.approx(DEADLINE_S, abs=EXACTLY * SCALE)


def test_so_is_the_time_to_come_back(tmp_path: Path) -> None:
    server = fast(tmp_path)
    lost, *rest = three(server)
    lost.work = lambda assign: lost.link.kill()  # type: ignore[method-assign]
    began_s = server.world.now_s
    assert server.run([lost, *rest])["a"].status == "gone"
    assert server.world.now_s - began_s == pytest.approx(REJOIN_S / SCALE, abs=EXACTLY)


def test_so_is_the_time_of_an_update(tmp_path: Path) -> None:
    server, held = slowed(tmp_path, SCALE)
    devices = {name: server.device(name, seed) for seed, name in enumerate("ab")}
    server.gather(2)
    for device in devices.values():
        serve_later(server, device, 6.0)
    held.spans["b"] = (server.world.now_s + 1.0, 2.0)
    answers = server.run(list(devices.values()))
    for name, here_s in (("a", 6.0), ("b", 4.0)):
        seen = answers[name].observed
        assert seen.uplink_s == pytest.approx(SCALE * here_s, abs=SCALE * EXACTLY)


def serve_later(server: Server, device: Device, delay_s: float) -> None:
    plain, waiting = device.serve, list[tuple[float, Fetch]]()
    device.serve = lambda fetch: waiting.append((server.world.now_s + delay_s, fetch))  # type: ignore[method-assign]

    def answer() -> None:
        while waiting and waiting[0][0] <= server.world.now_s:
            plain(waiting.pop(0)[1])

    server.world.actors.append(answer)


@pytest.mark.parametrize(("delay_s", "status"), [(19.0, "ok"), (21.0, "late")])
def test_a_deadline_is_put_off_for_who_is_held_back(
    tmp_path: Path, delay_s: float, status: str
) -> None:
    server, held = slowed(tmp_path)
    waits, late, other = three(server)
    held.spans["a"] = (server.world.now_s + 5.0, 20.0)
    waits.delay_s = DEADLINE_S + delay_s
    late.delay_s = DEADLINE_S + 5  # while the round is still open, but its own time is over
    began_s, life_s = server.world.now_s, server.exchange.now_s()
    answers = server.run([waits, late, other])
    assert (answers["a"].status, answers["b"].status) == (status, "late")
    server.assert_ok(answers, other)
    assert server.drops == {("b", "duplicate"): 1}
    end_s = DEADLINE_S + min(delay_s, 20.0)
    assert server.world.now_s - began_s == pytest.approx(end_s, abs=EXACTLY)
    # In life it was as long as for the device that lived it longest, without the waiting.
    assert server.exchange.now_s() - life_s == pytest.approx(DEADLINE_S, abs=1.5)


def test_what_was_waited_before_does_not_count(tmp_path: Path) -> None:
    server, held = slowed(tmp_path)
    late, *rest = three(server)
    held.spans["a"] = (0.0, 50.0)
    late.delay_s = DEADLINE_S + 5
    began_s = server.world.now_s
    assert server.run([late, *rest])["a"].status == "late"
    assert server.world.now_s - began_s == pytest.approx(DEADLINE_S, abs=EXACTLY)


class Turns:
    """One turn, which ``a`` holds; all others wait for it, and life stands still for them."""

    def __init__(self, folder: Path) -> None:
        self.over_s: float | None = None
        self.ended: list[str] = []
        self.began_s = 0.0
        self.server = Server(folder, life=Life(held_s=self.held_s, end_turn=self.end))

    def held_s(self, client: str) -> float:
        if client == "a":
            return 0.0
        return (self.server.world.now_s if self.over_s is None else self.over_s) - self.began_s

    def end(self, client: str) -> None:
        self.ended.append(client)
        if client == "a":
            self.over_s = self.server.world.now_s


@pytest.mark.parametrize("lost", [False, True])
def test_a_device_that_hangs_with_its_turn_holds_up_nobody_for_ever(
    tmp_path: Path, lost: bool
) -> None:
    turns = Turns(tmp_path)
    server, world = turns.server, turns.server.world
    hangs, *others = three(server)
    turns.began_s = world.now_s
    hangs.work = lambda assign: hangs.link.kill() if lost else None  # type: ignore[method-assign]
    for device in others:
        start_later(turns, device, 2.0)
    answers = server.run([hangs, *others])
    assert answers["a"].status == ("gone" if lost else "late")
    server.assert_ok(answers, *others)
    assert turns.ended == ["a"]
    assert turns.over_s is not None
    assert turns.over_s - turns.began_s == pytest.approx(DEADLINE_S, abs=2 * EXACTLY)
    assert world.now_s - turns.over_s == pytest.approx(2.0, abs=2 * EXACTLY)


def start_later(turns: Turns, device: Device, seconds: float) -> None:
    """The device works, for so long, when it has the turn."""
    plain, work = device.work, list[Assign]()
    device.work = work.append  # type: ignore[method-assign]

    def act() -> None:
        if turns.over_s is not None and turns.server.world.now_s >= turns.over_s + seconds:
            while work:
                plain(work.pop())

    turns.server.world.actors.append(act)


def test_the_turns_of_those_who_did_not_answer_end_with_the_round(tmp_path: Path) -> None:
    """Not of those who did: they may have one already for what comes next."""
    ended: list[str] = []
    server = Server(tmp_path, life=Life(end_turn=ended.append))
    lost, *rest = three(server)
    lost.work = lambda assign: lost.link.kill()  # type: ignore[method-assign]
    assert server.run([lost, *rest])["a"].status == "gone"
    assert ended == ["a"]


def test_waiting_for_devices_is_life_too(tmp_path: Path) -> None:
    server = fast(tmp_path)
    began_s, life_s = server.world.now_s, server.exchange.now_s()
    server.exchange.gather(1, 20.0)
    assert server.world.now_s - began_s == pytest.approx(20.0 / SCALE, abs=EXACTLY)
    assert server.exchange.now_s() - life_s == pytest.approx(20.0, abs=SCALE * EXACTLY)


def test_a_round_counts_the_waiting_for_its_devices(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, experiment(round={"quorum": 1.0}), life=Life(time_scale=SCALE))
    away = fleet.devices["d"]
    fleet.lose("d")
    away.back_s = fleet.world.now_s + 1.0
    fleet.world.actors.append(away.step)
    began_s = fleet.world.now_s
    fleet.run(1)
    assert fleet.records[0].round_s == pytest.approx(
        SCALE * (fleet.world.now_s - began_s), rel=0.01
    )
    assert fleet.records[0].round_s > SCALE


def test_real_life_is_as_long_as_here(tmp_path: Path) -> None:
    server = Server(tmp_path)
    slow, *rest = three(server)
    slow.delay_s = 7.0
    server.exchange.gather(9, 3.0)
    for number in (1, 2):
        began_s, life_s = server.world.now_s, server.exchange.now_s()
        for device in (slow, *rest):
            assert number > 1 or not device.got(Assign)
        server.run([slow, *rest], number)
        took_s = server.world.now_s - began_s
        assert took_s >= 7.0
        assert server.exchange.now_s() - life_s == pytest.approx(took_s, abs=0.01)
