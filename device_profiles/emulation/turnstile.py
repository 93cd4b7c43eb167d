"""`Turnstile`: lets the devices of one host compute while their quotas fit its cores."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from device_profiles.emulation.turn_queue import Change, TurnQueue
from edge_runtime.errors import EmulationError
from edge_runtime.turn import GRANTED, OVER, REQUESTS, Phase

log = logging.getLogger("flexmoe.turns")

MOST_PATH_BYTES = 100
"""A Unix socket's path has 108 bytes at most, on some systems 104."""
_MOST_NAME_BYTES = 256
_BACKLOG = 256
_PAUSE_S = 0.1
_PHASES = {request: phase for phase, request in REQUESTS.items()}


class _Guest:
    """A connection; `name` is empty until it was told."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.name = ""
        self.heard = b""  # of a name that is not whole


class Turnstile:
    """Serves `edge_runtime.turn.SocketTurn` from a thread of its own, until `close`."""

    def __init__(
        self,
        path: Path,
        cores: float,
        quotas: Mapping[str, Mapping[Phase, float]],
        on_grant: Callable[[str, Phase | None], None],
    ) -> None:
        """Listens at `path`. `quotas` in cores, by device and phase.

        `on_grant` is called from the thread: with a phase before the device hears of it; with None
        when the device holds nothing any more. A device whose grant it fails for gets no turn.
        `ValueError` for a quota above `cores`, `EmulationError` if nothing can listen at `path`.
        """
        self._queue = TurnQueue(cores, quotas)
        self.path = path
        self._on_grant = on_grant
        self._lock = threading.Lock()  # of the waits
        self._waited_s = dict.fromkeys(quotas, 0.0)
        self._since_s: dict[str, float] = {}  # of those who wait
        self._guests: dict[str, _Guest] = {}  # by name
        self._to_end: deque[str] = deque()  # names of those whose turns are to end
        self._listener = _listen_at(path)
        self._waker, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="turnstile", daemon=True)
        self._thread.start()

    def waited_s(self, name: str) -> float:
        """How long the device has waited for its turns, with the wait under way, in seconds."""
        with self._lock:
            return self._waited(name, time.monotonic())

    def waits(self) -> Mapping[str, float]:
        """`waited_s` of all devices."""
        with self._lock:
            now_s = time.monotonic()
            return {name: self._waited(name, now_s) for name in self._waited_s}

    def end_turn(self, name: str) -> None:
        """Take from the device its turn, or its place in the queue, whatever it does.

        Its connection is closed: if it lives it gives up this work, and connects for the next.
        """
        self._to_end.append(name)
        with contextlib.suppress(OSError):  # all turns have ended
            self._waker.send(b"e")

    def close(self) -> None:
        """Give no more turns; devices that ask are told so by their connection's end."""
        self._waker.close()
        self._thread.join()

    def _waited(self, name: str, now_s: float) -> float:
        return self._waited_s.get(name, 0.0) + now_s - self._since_s.get(name, now_s)

    # --- the thread ----------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._serve_some():
                pass
        finally:  # whatever went wrong: nobody must wait for an answer that never comes
            self._end()

    def _serve_some(self) -> bool:
        for key, _ in self._selector.select():
            if key.fileobj is self._woken:
                if not self._woken.recv(_MOST_NAME_BYTES):
                    return False
                self._end_turns()
            elif key.fileobj is self._listener:
                self._let_in()
            elif self._selector.get_map().get(key.fd) is key:  # it is not gone by now
                self._hear(key.data)
        return True

    def _end_turns(self) -> None:
        while self._to_end:
            name = self._to_end.popleft()
            if name in self._guests:
                self._hear(self._guests[name])  # it may have said that it is over
            if name in self._guests and self._queue.busy(name):
                log.info("turns: %s has had its time", name)
                self._drop(self._guests[name])

    def _end(self) -> None:
        self._count_waits(all_over=True)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        self.path.unlink(missing_ok=True)

    def _let_in(self) -> None:
        try:
            link, _ = self._listener.accept()
        except BlockingIOError:  # it went again
            return
        except OSError as error:  # most likely there are no more files to open
            log.warning("turns: a connection failed: %s", error)
            time.sleep(_PAUSE_S)  # it is still there to be accepted
            return
        link.setblocking(False)
        self._selector.register(link, selectors.EVENT_READ, _Guest(link))

    def _hear(self, guest: _Guest) -> None:
        try:
            data = guest.link.recv(_MOST_NAME_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(guest)
            return
        if not guest.name:
            guest.heard += data
            name, whole, data = guest.heard.partition(b"\n")
            if not whole and len(name) < _MOST_NAME_BYTES:
                return
            if not self._enter(guest, name):
                return
        for request in data:
            if not self._take(guest, bytes([request])):
                return

    def _enter(self, guest: _Guest, name: bytes) -> bool:
        """The guest has said who it is; one of the same name, who came before, is gone."""
        text = name.decode(errors="replace")
        if not self._queue.knows(text):
            self._drop(guest, f"no device of this run is called {text[:80]!r}")
            return False
        if text in self._guests:
            self._drop(self._guests[text])
        guest.name, guest.heard = text, b""
        self._guests[text] = guest
        return True

    def _take(self, guest: _Guest, request: bytes) -> bool:
        """Do what the guest asks for; False if that was the end of it."""
        name = guest.name
        if request == OVER:
            self._apply(self._queue.end(name))
        elif request in _PHASES and not self._queue.waits(name):
            with self._lock:
                self._since_s[name] = time.monotonic()
            self._apply(self._queue.ask(name, _PHASES[request]))
        else:
            self._drop(guest, f"{name} asked for {request!r}, which has no place here")
        return self._guests.get(name) is guest

    def _drop(self, guest: _Guest, why: str = "") -> None:
        """The connection is over, and what it asked for."""
        if why:
            log.warning("turns: %s; the connection is closed", why)
        self._apply(self._disconnect(guest))

    def _disconnect(self, guest: _Guest) -> Sequence[Change]:
        self._selector.unregister(guest.link)
        guest.link.close()
        if not guest.name:
            return []
        del self._guests[guest.name]
        return self._queue.end(guest.name)

    def _apply(self, changes: Sequence[Change]) -> None:
        """Set the quotas and tell the devices; whose quota cannot be set gets no turn."""
        todo = deque(changes)
        self._count_waits()
        while todo:
            name, phase = todo.popleft()
            guest = self._guests.get(name) if phase is not None else None
            try:
                self._on_grant(name, phase)
            except (OSError, EmulationError) as error:
                log.error("turns: the quota of %s cannot be set: %s", name, error)
                if guest is not None:
                    todo.extend(self._disconnect(guest))
                    self._count_waits()
                continue
            if guest is not None:
                with contextlib.suppress(OSError):  # it is gone, and the selector will say so
                    guest.link.send(GRANTED)

    def _count_waits(self, all_over: bool = False) -> None:
        """Those who wait no longer have waited until now; `all_over`: nobody waits any more."""
        with self._lock:
            now_s = time.monotonic()
            waits = [] if all_over else list(filter(self._queue.waits, self._since_s))
            for name in self._since_s.keys() - waits:
                self._waited_s[name] += now_s - self._since_s.pop(name)


def _listen_at(path: Path) -> socket.socket:
    if len(str(path).encode()) > MOST_PATH_BYTES:
        raise EmulationError(
            f"{path} is too long for a socket's path, expected at most {MOST_PATH_BYTES} bytes; "
            "choose a shorter folder for temporary files (TMPDIR)"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise EmulationError(f"cannot listen at {path} for the devices' turns: {error}") from None
    listener.setblocking(False)
    return listener
