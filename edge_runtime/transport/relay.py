"""`Relay`: a link emulated in user space, for hosts whose kernel cannot.

It listens on this machine, connects to the real broker, and moves bytes both ways through a `Lane`
each. All in one thread, which sleeps until a socket or a time calls.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import threading
import time
from random import Random

from edge_runtime.errors import BrokerError
from edge_runtime.transport.lane import Lane
from edge_runtime.transport.shape import Shape

CLOSE_TIMEOUT_S = 2.0
"""How long `close` waits, beside the delay, for goodbyes that are still on their way."""
_READ_BYTES = 16 << 10
# A kernel's buffer takes megabytes if it may: then a peer would not feel how slow the link is.
_RECEIVE_BUFFER_BYTES = 64 << 10
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Connect to (`host`, `port`) of this object instead of to the broker.

    Every connection gets the whole rate. A broker that is not there, ends a connection or resets
    it: the device's end of the connection sees the same, after the delay.
    """

    def __init__(self, host: str, port: int, shape: Shape) -> None:
        """Listen; the broker at `host` and `port` is called for each connection that comes.

        `BrokerError` if this machine gives no port to listen on.
        """
        self._broker = (host, port)
        self._shape = shape
        self._randoms = (Random(f"{shape.seed}/up"), Random(f"{shape.seed}/down"))
        self._closing = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._listener = socket.socket()
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            self._listener.bind(("127.0.0.1", 0))
            self._listener.listen()
        except OSError as error:
            self._release()
            raise BrokerError(
                f"cannot listen on 127.0.0.1 to emulate a link ({error.strerror}); is the loopback "
                "interface up?"
            ) from None
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()
        self._selector.register(self._listener, _READ)
        self._selector.register(self._woken, _READ)
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no new connections, wait a little for those that are ending, and cut the rest."""
        if not self._closing.is_set():
            self._closing.set()
            with contextlib.suppress(OSError):
                self._wake.send(b"!")
        self._thread.join()

    def _run(self) -> None:
        deadline_s = float("inf")
        while True:
            now_s = time.monotonic()
            if self._closing.is_set():
                deadline_s = min(deadline_s, now_s + CLOSE_TIMEOUT_S + self._shape.delay_s)
                if not self._connections or now_s >= deadline_s:
                    break
            times = [deadline_s, *(connection.next_s() for connection in self._connections)]
            timeout_s = max(0.0, min(times) - now_s)
            ready = self._selector.select(timeout_s if timeout_s < float("inf") else None)
            now_s = time.monotonic()
            for key, events in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    self._selector.unregister(self._woken)
                    self._selector.unregister(self._listener)
                    self._listener.close()
                else:
                    key.data.handle(key.fileobj, events, now_s)
            for connection in list(self._connections):
                connection.move(now_s)
                if connection.is_over:
                    self._connections.remove(connection)
        for connection in self._connections:
            connection.close()
        self._release()

    def _accept(self) -> None:
        try:
            device, _ = self._listener.accept()
        except OSError:  # gone again, or out of files: the next one may have more luck
            return
        lanes = (
            Lane(self._shape.up_bps, self._shape.delay_s, self._shape.loss, self._randoms[0]),
            Lane(self._shape.down_bps, self._shape.delay_s, self._shape.loss, self._randoms[1]),
        )
        try:
            self._connections.add(_Connection(self._selector, device, self._broker, lanes))
        except (OSError, ValueError):  # no such host, no route, or refused at once
            _reset(device)

    def _release(self) -> None:
        self._listener.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()


class _Flow:
    """One direction: bytes of `source` go through `lane` to `sink`."""

    def __init__(self, source: socket.socket, sink: socket.socket, lane: Lane) -> None:
        self.source, self.sink, self.lane = source, sink, lane
        self.blocked = False  # the sink takes no more for now
        self.over = False  # the sink has got all, and the end
        self.broken = False  # the source was reset

    def read(self, now_s: float) -> None:
        """Put into the lane what the source has, as far as there is room."""
        while not self.lane.ended and (room := self.lane.room):
            try:
                data = self.source.recv(min(room, _READ_BYTES))
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                data = b""
            if data:
                self.lane.put(data, now_s)
            else:
                self.lane.end(now_s)

    def write(self, now_s: float) -> bool:
        """Give to the sink what has arrived; False if the sink is gone."""
        while (piece := self.lane.first(now_s)) is not None:
            try:
                self.lane.take(self.sink.send(piece))
            except BlockingIOError:
                self.blocked = True
                return True
            except OSError:
                return False
        self.blocked = False
        self.over = self.lane.is_over(now_s)
        return True

    def finish(self) -> None:
        """Tell the sink that no more comes."""
        with contextlib.suppress(OSError):
            self.sink.shutdown(socket.SHUT_WR)

    def cut(self, now_s: float) -> None:
        """The sink is gone: nothing is read or moved any more."""
        self.over = True
        self.lane.end(now_s)

    @property
    def wants_read(self) -> bool:
        return not self.lane.ended and self.lane.room > 0


class _Connection:
    """A device's socket, the broker's, and the two flows between them."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        device: socket.socket,
        address: tuple[str, int],
        lanes: tuple[Lane, Lane],
    ) -> None:
        """Begin to call the broker; `OSError` if that fails at once. `lanes`: up and down."""
        self._selector = selector
        self._device = device
        self._broker = broker = _call(address)
        device.setblocking(False)
        for sock in (device, broker):
            # A packet of its own must not wait for the acknowledgement of the one before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._up, self._down = _Flow(device, broker, lanes[0]), _Flow(broker, device, lanes[1])
        self._calling = True
        self._interest: dict[socket.socket, int] = {device: 0, broker: 0}
        self.is_over = False
        self._watch()

    def handle(self, sock: socket.socket, events: int, now_s: float) -> None:
        """`sock` can be read from or written to."""
        if self.is_over:
            return
        if sock is self._broker and self._calling:
            if self._broker.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._down.broken = True
                self.close()
                return
            self._calling = False
        if events & _READ:
            (self._up if sock is self._device else self._down).read(now_s)

    def move(self, now_s: float) -> None:
        """Move on what has arrived, and close once both directions are over."""
        if self.is_over or self._calling:
            return
        for flow, back in ((self._up, self._down), (self._down, self._up)):
            if flow.over:
                continue
            if not flow.write(now_s):
                # The sink sends nothing more either; what it has sent is still read and arrives.
                flow.cut(now_s)
                back.broken = True
            elif flow.over and not self._is_reset:
                flow.finish()
        if self._is_reset or (self._up.over and self._down.over):
            self.close()
        else:
            self._watch()

    @property
    def _is_reset(self) -> bool:
        """Whether the broker has reset the connection, and the device is to hear of it."""
        return self._down.broken and self._down.over

    def next_s(self) -> float:
        """When there is something to do, if no socket calls before."""
        times = [
            flow.lane.next_s() for flow in (self._up, self._down) if not (flow.blocked or flow.over)
        ]
        known = [time_s for time_s in times if time_s is not None]
        return min(known) if known and not self._calling else float("inf")

    def close(self) -> None:
        """Close both sockets; the device's with a reset if that is how the broker's ended."""
        self.is_over = True
        for sock, interest in self._interest.items():
            if interest:
                self._selector.unregister(sock)
        self._interest.clear()
        self._broker.close()
        _reset(self._device) if self._down.broken else self._device.close()

    def _watch(self) -> None:
        """Wait for what each socket is needed for, and for nothing else."""
        wanted = {
            self._device: _READ * self._up.wants_read | _WRITE * self._down.blocked,
            self._broker: _READ * self._down.wants_read | _WRITE * self._up.blocked,
        }
        if self._calling:
            wanted[self._broker] = _WRITE
        for sock, events in wanted.items():
            before, self._interest[sock] = self._interest[sock], events
            if events and before and events != before:
                self._selector.modify(sock, events, self)
            elif events and not before:
                self._selector.register(sock, events, self)
            elif before and not events:
                self._selector.unregister(sock)


def _call(address: tuple[str, int]) -> socket.socket:
    """A socket that connects to `address`, without waiting for it; `OSError` if it cannot.

    IPv4 comes first where a name has both: so does the address that our own broker listens on.
    """
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    family, kind, protocol, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    sock.setblocking(False)
    result = sock.connect_ex(where)
    if result not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(result, "connect")
    return sock


def _reset(sock: socket.socket) -> None:
    """Close with a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
