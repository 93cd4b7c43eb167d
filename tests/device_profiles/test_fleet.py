"""A fleet: devices come and go as planned; what becomes of those that end."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from device_profiles.fleet.availability import Change
from device_profiles.fleet.fleet import Fleet, FleetSettings, Member
from edge_runtime.errors import FleetError
from edge_runtime.shard import Shard

ENOUGH_S = 60.0


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    x, y = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)
    Shard(x_train=x, y_train=y, x_test=x, y_test=y).save(tmp_path / "shard.npz")
    return tmp_path / "shard.npz"


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of one who takes connections and never answers: devices wait there for a while."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


def fleet(
    tmp_path: Path,
    *members: Member,
    port: int = 1,  # nobody listens there
    trainer: str = "native",
    time_scale: float = 1.0,
    restart_s: float | None = None,
) -> Fleet:
    settings = FleetSettings(
        "127.0.0.1", port, "default", trainer, tmp_path / "log", tmp_path, time_scale, restart_s
    )
    return Fleet(members, settings)


def changes(*pairs: tuple[float, bool]) -> Iterator[Change]:
    return iter([Change(time_s, on) for time_s, on in pairs])


def wait_for(devices: Fleet, what: str) -> list[str]:
    """All events until one with `what` in it."""
    events: list[str] = []
    end_s = time.monotonic() + ENOUGH_S
    while not any(what in event for event in events):
        assert time.monotonic() < end_s, events
        devices.tick()
        events += devices.events()
        time.sleep(0.02)
    return events


def test_a_device_that_cannot_start_is_named_once_with_its_last_words(tmp_path: Path) -> None:
    members = [Member(name, tmp_path / f"no-{name}.npz") for name in ("first", "second")]
    with fleet(tmp_path, *members) as devices:
        devices.wait(ENOUGH_S)
        said = sorted(line.partition(" s: ")[2] for line in wait_for(devices, "first"))
        assert [line.split()[0] for line in said] == ["first", "second"]
        assert "ended with code 2" in said[0] and "no-first.npz" in said[0]
        assert str(tmp_path / "log" / "first.log") in said[0]
        devices.tick()
        assert devices.events() == []


def test_a_device_that_cannot_start_ends_the_joining(tmp_path: Path) -> None:
    with fleet(tmp_path, Member("only", tmp_path / "none.npz")) as devices:
        devices.wait(ENOUGH_S)
        devices.tick()
        with pytest.raises(FleetError, match=r"only ended with code 2: .*none\.npz"):
            devices.check_joining()


@pytest.mark.parametrize(
    ("trainer", "options", "says"),
    [
        ("tf", [], "--trainer: invalid choice: 'tf'"),
        ("native", ["--threads", "-1"], "--threads: .* got '-1'"),
        ("native", ["--link", "two words"], "link name 'two words': expected"),
    ],
)
def test_devices_are_told_how_to_train_and_how_they_are_linked(
    trainer: str, options: Sequence[str], says: str, tmp_path: Path
) -> None:
    """Nonsense shows that it arrives."""
    only = Member("only", tmp_path / "none.npz", options)
    with fleet(tmp_path, only, trainer=trainer) as devices:
        devices.wait(ENOUGH_S)
        devices.tick()
        with pytest.raises(FleetError, match=says):
            devices.check_joining()


def test_a_fleet_that_runs_is_ended_on_the_way_out(
    tmp_path: Path, shard: Path, silent: int
) -> None:
    with fleet(tmp_path, Member("only", shard), port=silent) as devices:
        (life,) = devices._lives.values()
        process = life.process
        assert process is not None and process.poll() is None
        assert devices.present == 1
    assert process.poll() is not None


@pytest.mark.parametrize(("cut", "word"), [(False, "left"), (True, "was cut off")])
def test_a_device_leaves_and_comes_back_as_planned(
    cut: bool, word: str, tmp_path: Path, shard: Path, silent: int
) -> None:
    """An hour of its life is a second here."""
    plan = changes((0.0, True), (3600.0, False), (7200.0, True))
    only = Member("only", shard, changes=plan, cut=cut)
    with fleet(tmp_path, only, port=silent, time_scale=3600.0) as devices:
        assert devices.present == 1
        left = wait_for(devices, "only")
        assert devices.present == 0
        assert len(left) == 1 and left[0].endswith(f"s: only {word}")
        assert float(left[0].split()[0]) >= 3600
        came = wait_for(devices, "only came")
        assert len(came) == 1 and devices.present == 1
        end_s = time.monotonic() + ENOUGH_S
        while not any(life.running for life in devices._lives.values()):
            assert time.monotonic() < end_s
            devices.tick()
            time.sleep(0.02)
        assert devices.events() == []  # that a process goes when it is told to is no failure


def test_a_device_that_is_away_at_first_is_not_started(tmp_path: Path, shard: Path) -> None:
    away = Member("away", shard, changes=changes((0.0, False)))
    with fleet(tmp_path, away) as devices:
        assert devices.present == 0
        assert devices.tick() == [] and devices.events() == []
    assert not (tmp_path / "log" / "away.log").exists()


def test_a_device_that_its_memory_limit_killed_is_named_and_starts_again(
    tmp_path: Path, shard: Path, silent: int
) -> None:
    """The kernel's count is made up here; the kill is real."""
    kills = 0
    only = Member("only", shard, kills=lambda: kills, memory="48 MiB")
    with fleet(tmp_path, only, port=silent, time_scale=100.0, restart_s=2.0) as devices:
        (life,) = devices._lives.values()
        for pause in ("2 s", "4 s", "8 s"):
            kills += 1
            assert life.process is not None
            life.process.signal(9)
            end_s, killed = time.monotonic() + ENOUGH_S, list[str]()
            while not killed:
                assert time.monotonic() < end_s
                killed = devices.tick()
            assert killed == ["only"]
            (event,) = devices.events()
            assert event.endswith(
                f"only was killed by its memory limit of 48 MiB, starts again in {pause}"
            )
            while not life.running:
                assert time.monotonic() < end_s
                assert devices.tick() == []
                time.sleep(0.01)


def test_a_device_that_comes_back_while_it_is_dying_is_started_once_its_end_is_noted(
    tmp_path: Path, shard: Path, silent: int
) -> None:
    """Else the end, and a kill with it, would be taken for the next process's."""
    plan = changes((0.0, True), (1000.0, False), (1001.0, True))
    only = Member("only", shard, changes=plan, cut=True)
    with fleet(tmp_path, only, port=silent, time_scale=1000.0) as devices:
        (life,) = devices._lives.values()
        first = life.process
        assert first is not None
        events = wait_for(devices, "came")
        assert [event.split()[-1] for event in events] == ["off", "came"]
        end_s = time.monotonic() + ENOUGH_S
        while life.process is None or life.process is first:
            assert time.monotonic() < end_s
            devices.tick()
        assert devices.lost == {"only"} and first.poll() is not None


def test_who_is_told_to_leave_twice_keeps_the_time_that_it_has_for_that(
    tmp_path: Path, shard: Path, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = (0.0, True), (1.0, False), (2.0, True), (3.0, False), (4.0, True), (5.0, False)
    with fleet(tmp_path, Member("only", shard, changes=changes(*times)), port=silent) as devices:
        (life,) = devices._lives.values()
        sent: list[int] = []
        monkeypatch.setattr(life, "_signal", sent.append)  # it hears nothing
        for now_s in (1.0, 2.0, 3.0, 4.0, 5.0, 5.9, 6.1):
            life.tick(now_s)
        assert sent == [signal.SIGTERM, signal.SIGKILL]


@pytest.mark.parametrize("restart_s", [None, 0.0])
def test_a_kill_that_was_not_for_its_memory_is_told_as_any_other_end(
    restart_s: float | None, tmp_path: Path, shard: Path, silent: int
) -> None:
    with fleet(tmp_path, Member("only", shard), port=silent, restart_s=restart_s) as devices:
        (life,) = devices._lives.values()
        assert life.process is not None
        life.process.signal(9)
        assert "only ended with code -9" in wait_for(devices, "only")[0]
        devices.tick()
        assert life.running == (restart_s is not None)
        assert devices.lost == {"only"}
