"""Turns over sockets, with devices that wait, crash and lie."""

from __future__ import annotations

import logging
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from device_profiles.emulation.turnstile import MOST_PATH_BYTES, Turnstile
from edge_runtime.errors import EmulationError
from edge_runtime.turn import Phase, SocketTurn

ROOT = Path(__file__).parents[2]


class Grants:
    """Notes what a turnstile grants, and that it is never too much."""

    def __init__(self, cores: float, quotas: Mapping[str, Mapping[Phase, float]]) -> None:
        self.cores, self.quotas = cores, quotas
        self.held: dict[str, float] = {}
        self.log: list[tuple[str, Phase | None]] = []
        self.most = 0.0
        self.broken = ""  # the name of the device whose quota cannot be set

    def __call__(self, name: str, phase: Phase | None) -> None:
        if name == self.broken and phase is not None:
            raise EmulationError("its group is gone")
        self.log.append((name, phase))
        self.held.pop(name, None)
        if phase is not None:
            self.held[name] = self.quotas[name][phase]
        self.most = max(self.most, sum(self.held.values()))


ALIKE: dict[Phase, float] = {"work": 0.6, "train": 0.3}


@pytest.fixture
def grants() -> Grants:
    return Grants(1.0, dict.fromkeys(("a", "b", "c"), ALIKE))


@pytest.fixture
def turnstile(grants: Grants, tmp_path: Path) -> Iterator[Turnstile]:
    turnstile = Turnstile(tmp_path / "turns", grants.cores, grants.quotas, grants)
    yield turnstile
    turnstile.close()


def never() -> bool:
    return False


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not true():
        time.sleep(0.001)


class Device(threading.Thread):
    """A device that asks for one phase; `granted` when it has ended."""

    def __init__(self, turnstile: Turnstile, name: str, phase: Phase = "work") -> None:
        super().__init__(daemon=True)
        self.turn = SocketTurn(turnstile.path, name)
        self.gives_up = threading.Event()
        self.granted: bool | EmulationError | None = None
        self._phase = phase
        before_s = turnstile.waited_s(name)
        self.start()
        until(lambda: turnstile.waited_s(name) > before_s or not self.is_alive())

    def run(self) -> None:
        try:
            self.granted = self.turn.begin(self._phase, self.gives_up.is_set)
        except EmulationError as error:
            self.granted = error

    def answer(self) -> bool | EmulationError | None:
        """What came of it."""
        self.join(20)
        return self.granted


def raw(turnstile: Turnstile, *pieces: bytes) -> socket.socket:
    """A connection that says this."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(20)
    link.connect(str(turnstile.path))
    for piece in pieces:
        link.sendall(piece)
    return link


def test_one_waits_until_the_other_is_over(turnstile: Turnstile, grants: Grants) -> None:
    first = SocketTurn(turnstile.path, "a")
    assert first.begin("work", never)
    second = Device(turnstile, "b")
    third = Device(turnstile, "c", "train")  # it would fit, and does not overtake
    assert first.begin("train", never)
    assert second.answer() is True
    waited_s = turnstile.waits()["b"]
    assert grants.log == [("a", "work"), ("a", "train"), ("b", "work")]
    first.over()
    assert third.answer() is True
    assert grants.log[3:] == [("a", None), ("c", "train")] and grants.most <= 1.0
    assert turnstile.waited_s("b") == waited_s > 0  # nothing is added when it does not wait
    assert second.turn.waited_s > 0


def test_a_wait_under_way_counts(turnstile: Turnstile) -> None:
    holder = raw(turnstile, b"a\nw")
    assert holder.recv(1) == b"g"
    waiting = Device(turnstile, "b")
    first_s = turnstile.waited_s("b")
    until(lambda: turnstile.waited_s("b") > first_s)
    assert turnstile.waits().keys() == {"a", "b", "c"} and turnstile.waited_s("c") == 0
    holder.close()
    assert waiting.answer() is True


def test_who_gives_up_has_no_place_any_more(turnstile: Turnstile, grants: Grants) -> None:
    holder = SocketTurn(turnstile.path, "a")
    assert holder.begin("work", never)
    patient, impatient = Device(turnstile, "b"), Device(turnstile, "c", "train")
    patient.gives_up.set()
    assert patient.answer() is False
    assert impatient.answer() is True  # now it is the first, and fits
    holder.over()
    assert patient.turn.begin("work", never)
    assert ("b", "work") in grants.log
    assert grants.log.count(("b", "work")) == 1


def test_a_device_that_is_killed_is_over(turnstile: Turnstile) -> None:
    code = (
        "import sys, time; from pathlib import Path; from edge_runtime.turn import SocketTurn\n"
        "turn = SocketTurn(Path(sys.argv[1]), 'a')\n"
        "print(turn.begin('work', lambda: False), flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(turnstile.path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        waiting = Device(turnstile, "b")
        process.send_signal(signal.SIGKILL)
    assert waiting.answer() is True


def test_a_device_that_starts_again_has_no_older_self(turnstile: Turnstile) -> None:
    older = raw(turnstile, b"a\nw")
    assert older.recv(1) == b"g"
    newer = SocketTurn(turnstile.path, "a")
    assert newer.begin("work", never)
    assert older.recv(1) == b""


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([b"stranger\n"], "no device of this run is called 'stranger'"),
        ([b"\xff\xfe\nw"], "no device of this run is called"),
        ([b"\n"], "no device of this run is called ''"),
        ([b"x" * 300], "no device of this run is called 'xxx"),
        ([b"a\nwx"], "a asked for b'x', which has no place here"),
        ([b"b\nww"], "b asked for b'w', which has no place here"),
    ],
    ids=["unknown", "no text", "nothing", "endless", "no request", "asked twice"],
)
def test_nonsense_ends_the_connection(
    turnstile: Turnstile, pieces: list[bytes], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    holder = SocketTurn(turnstile.path, "c")
    assert holder.begin("work", never)
    with caplog.at_level(logging.WARNING):
        link = raw(turnstile, *pieces)
        with pytest.raises(ConnectionResetError) if pieces == [b"x" * 300] else nullcontext():
            assert link.recv(2) == b""
    assert says in caplog.text and "the connection is closed" in caplog.text
    holder.over()
    assert Device(turnstile, "a").answer() is True  # it serves on, and nobody is left waiting


def test_a_name_may_come_in_pieces(turnstile: Turnstile) -> None:
    link = raw(turnstile)
    for byte in b"a\nw":
        link.sendall(bytes([byte]))
        time.sleep(0.002)
    assert link.recv(1) == b"g"
    link.sendall(b"ow")
    assert link.recv(1) == b"g"


def test_a_quota_that_cannot_be_set_is_no_turn(
    turnstile: Turnstile, grants: Grants, caplog: pytest.LogCaptureFixture
) -> None:
    grants.broken = "a"
    refused = Device(turnstile, "a").answer()
    assert isinstance(refused, EmulationError)
    assert "the quota of a cannot be set: its group is gone" in caplog.text
    assert Device(turnstile, "b").answer() is True
    grants.broken = ""
    assert Device(turnstile, "a", "train").answer() is True


def test_those_who_wait_at_the_end_are_told(turnstile: Turnstile) -> None:
    holder = SocketTurn(turnstile.path, "a")
    assert holder.begin("work", never)
    waiting = Device(turnstile, "b")
    turnstile.close()
    assert isinstance(waiting.answer(), EmulationError)
    assert not turnstile.path.exists()
    holder.over()
    assert turnstile.waited_s("a") > 0


def test_the_turn_of_one_that_hangs_can_be_ended(turnstile: Turnstile, grants: Grants) -> None:
    hangs = SocketTurn(turnstile.path, "a")
    assert hangs.begin("work", never)
    waiting = Device(turnstile, "b")
    turnstile.end_turn("a")
    assert waiting.answer() is True
    assert grants.log == [("a", "work"), ("a", None), ("b", "work")]
    with pytest.raises(EmulationError, match="no turn to compute"):  # it lives: this work is over
        hangs.begin("train", never)
    assert hangs.begin("train", never)  # the next is not


def test_so_can_the_wait_of_one(turnstile: Turnstile, grants: Grants) -> None:
    holder = SocketTurn(turnstile.path, "a")
    assert holder.begin("work", never)
    first, second = Device(turnstile, "b"), Device(turnstile, "c")
    turnstile.end_turn("b")
    assert isinstance(first.answer(), EmulationError)
    holder.over()
    assert second.answer() is True
    assert not any(name == "b" for name, _ in grants.log)


def test_who_has_no_turn_loses_none(turnstile: Turnstile) -> None:
    """Not its connection either: its next work would fail for that."""
    over = SocketTurn(turnstile.path, "a")
    assert over.begin("work", never)
    over.over()
    for name in ("a", "b", "stranger"):
        turnstile.end_turn(name)
    other = SocketTurn(turnstile.path, "c")
    for _ in range(2):  # with the second one it has heard all that was said before the first
        assert other.begin("train", never)
    assert over.begin("train", never)
    turnstile.close()
    turnstile.end_turn("a")


def test_no_wait_outlives_the_thread(tmp_path: Path) -> None:
    """Life would stand still for ever for those who wait."""

    def fail(name: str, phase: Phase | None) -> None:
        if phase is None:
            raise RuntimeError("a bug")

    turnstile = Turnstile(tmp_path / "turns", 1.0, dict.fromkeys("abc", ALIKE), fail)
    holder = SocketTurn(turnstile.path, "a")
    assert holder.begin("work", never)
    first, second = Device(turnstile, "b"), Device(turnstile, "c")
    raised: list[type[BaseException]] = []
    threading.excepthook, before = lambda args: raised.append(args.exc_type), threading.excepthook
    try:
        holder.over()
        for waiting in (first, second):
            assert isinstance(waiting.answer(), EmulationError)
        turnstile.close()
    finally:
        threading.excepthook = before
    assert raised == [RuntimeError]
    waits = turnstile.waits()
    time.sleep(0.002)
    assert turnstile.waits() == waits and min(waits.values()) > 0
    assert {name: turnstile.waited_s(name) for name in "abc"} == waits


def test_a_path_where_nothing_can_listen(tmp_path: Path, grants: Grants) -> None:
    quotas = grants.quotas
    with pytest.raises(EmulationError, match=r"cannot listen at .*none/turns"):
        Turnstile(tmp_path / "none/turns", 1.0, quotas, grants)
    with pytest.raises(EmulationError, match=r"too long for a socket's path.*TMPDIR"):
        Turnstile(tmp_path / ("x" * MOST_PATH_BYTES), 1.0, quotas, grants)
    with pytest.raises(ValueError, match=r"there are 0\.5"):
        Turnstile(tmp_path / "turns", 0.5, quotas, grants)
    assert not list(tmp_path.iterdir())


def test_two_hundred_devices_take_their_turns(tmp_path: Path) -> None:
    rng = random.Random(1)
    quotas: dict[str, dict[Phase, float]] = {
        f"d{number}": {"work": rng.uniform(0.05, 1.0), "train": rng.uniform(0.01, 0.5)}
        for number in range(200)
    }
    grants = Grants(1.8, quotas)
    turnstile = Turnstile(tmp_path / "turns", grants.cores, quotas, grants)
    done: list[str] = []

    def live(name: str) -> None:
        turn = SocketTurn(turnstile.path, name)
        for _ in range(3):
            for phase in ("work", "train", "work"):
                assert turn.begin(phase, never)
            turn.over()
        turn.close()
        done.append(name)

    threads = [threading.Thread(target=live, args=(name,)) for name in quotas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turnstile.close()
    assert sorted(done) == sorted(quotas)
    assert 0 < grants.most <= grants.cores + 1e-4 and not grants.held
    assert sum(phase == "train" for _, phase in grants.log) == 3 * len(quotas)
