"""A device's end of its turns, against a turnstile that says what the test wants."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_runtime.errors import EmulationError
from edge_runtime.turn import NoTurn, SocketTurn


class Scripted:
    """Listens at `path`. `hear` is what came on the connection that was accepted last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)
        self._link: socket.socket | None = None

    @property
    def link(self) -> socket.socket:
        """The connection."""
        assert self._link is not None
        return self._link

    def accept(self) -> bytes:
        """The next connection; returns the line that it begins with."""
        self.hang_up()
        self._link, _ = self._listener.accept()
        self._link.settimeout(10)
        name = b""
        while not name.endswith(b"\n"):
            name += self.hear()
        return name

    def hear(self) -> bytes:
        """The next byte; empty when the device has hung up."""
        return self.link.recv(1)

    def grant(self) -> None:
        """The turn has come."""
        self.link.sendall(b"g")

    def hang_up(self) -> None:
        """End the connection, if there is one."""
        if self._link is not None:
            self._link.close()

    def close(self) -> None:
        """End all."""
        self.hang_up()
        self._listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    server = Scripted(tmp_path / "turns")
    yield server
    server.close()


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    """Do `act` in a thread that has begun."""
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def never() -> bool:
    return False


def test_a_real_device_may_always_compute() -> None:
    turn = NoTurn()
    assert turn.begin("train", lambda: pytest.fail("it waits")) and turn.waited_s == 0
    turn.over()
    turn.close()


def test_it_says_its_name_once_and_then_asks_for_each_phase(server: Scripted) -> None:
    heard: list[bytes] = []

    def serve() -> None:
        heard.append(server.accept())
        for _ in range(3):
            heard.append(server.hear())
            server.grant()
        heard.extend([server.hear(), server.hear()])

    thread = meanwhile(serve)
    turn = SocketTurn(server.path, "dev-1")
    assert turn.begin("work", never) and turn.begin("train", never) and turn.begin("work", never)
    turn.over()
    turn.close()
    thread.join()
    assert heard == [b"dev-1\n", b"w", b"t", b"w", b"o", b""]
    assert turn.waited_s > 0


def test_while_it_waits_it_looks_at_what_else_there_is(server: Scripted) -> None:
    """The turn comes only after the device has looked three times."""
    looks, thread = [0], meanwhile(lambda: (server.accept(), server.hear(), None)[-1])

    def idle() -> bool:
        thread.join()
        looks[0] += 1
        if looks[0] == 3:
            server.grant()
        return False

    turn = SocketTurn(server.path, "dev")
    assert turn.begin("train", idle) and looks[0] >= 3
    assert turn.waited_s >= 0.1  # three times 50 ms, at least two of them whole


class Enough(Exception):
    """Breaks off a wait."""


def broken_off() -> bool:
    raise Enough


@pytest.mark.parametrize("idle", [lambda: True, broken_off])
def test_the_answer_to_a_wait_that_was_given_up_is_not_taken(
    server: Scripted, idle: Callable[[], bool]
) -> None:
    heard: list[bytes] = []
    gone, again = threading.Event(), threading.Event()

    def serve() -> None:
        heard.extend([server.accept(), server.hear()])
        gone.wait(10)
        with contextlib.suppress(OSError):
            server.grant()  # too late
        heard.extend([server.accept(), server.hear()])
        again.set()

    thread, turn = meanwhile(serve), SocketTurn(server.path, "dev")
    with contextlib.suppress(Enough):
        assert not turn.begin("work", idle)
    turn.over()  # nothing is under way
    gone.set()
    assert not turn.begin("train", again.is_set)
    thread.join()
    assert heard == [b"dev\n", b"w", b"dev\n", b"t"]


def test_without_a_turnstile_there_is_no_turn(tmp_path: Path) -> None:
    turn = SocketTurn(tmp_path / "nobody", "dev")
    with pytest.raises(EmulationError, match=r"no turn to compute from .*nobody.*'dev'"):
        turn.begin("work", never)
    turn.over()


def test_a_turnstile_that_goes_away(server: Scripted) -> None:
    turn = SocketTurn(server.path, "dev")

    def serve() -> None:
        server.accept()
        server.hear()
        server.grant()
        server.hear()
        server.hang_up()

    thread = meanwhile(serve)
    assert turn.begin("work", never)
    with pytest.raises(EmulationError, match="the connection was closed"):
        turn.begin("train", never)
    thread.join()
    turn.over()  # tells nobody, and does not fail

    def serve_again() -> None:
        assert server.accept() == b"dev\n"
        server.hear()
        server.grant()

    thread = meanwhile(serve_again)
    assert turn.begin("work", never)
    thread.join()
    server.hang_up()
    turn.over()
    turn.close()
