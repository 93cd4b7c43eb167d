"""Take as much as there is, to see how much that is: ``hog.py WHAT ...``

::

    cpu N                                     N processes that never rest
    memory BYTES                              touch memory until the kernel ends it, at most so much
    send HOST PORT SECONDS BUFFER [SHAPE]     send as fast as it goes
    receive HOST PORT SECONDS BUFFER [SHAPE]  take what comes for so long; print [seconds, bytes so
                                              far] of each arrival as JSON

Started by path and with ``-I -S``, so that it needs nothing but the interpreter. With a SHAPE, to
be emulated in user space, it is started as a module.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

READY = "ready"
_PIECE_BYTES = 1024 * 1024
_READ_BYTES = 64 * 1024
WAIT_S = 120.0
"""For a connection, and for the first bytes."""


def main(arguments: list[str]) -> int:
    """Returns when there was as much as was allowed."""
    what, *rest = arguments
    if what == "cpu":
        return _burn(int(rest[0]))
    if what == "memory":
        return _fill(int(rest[0]))
    return _transfer(what == "send", rest)


def _burn(processes: int) -> int:
    for _ in range(processes - 1):
        if os.fork() == 0:
            break
    else:
        print(READY, flush=True)
    while True:
        pass


def _fill(limit_bytes: int) -> int:
    pieces = []
    for _ in range(limit_bytes // _PIECE_BYTES):
        pieces.append(b"\1" * _PIECE_BYTES)
    return 0


def _transfer(sends: bool, arguments: list[str]) -> int:
    host, port = arguments[0], int(arguments[1])
    seconds, buffer_bytes = float(arguments[2]), int(arguments[3])
    if arguments[4:]:
        from edge_runtime.transport.relay import Relay
        from edge_runtime.transport.shape import Shape

        relay = Relay(host, port, Shape.parse(arguments[4]))
        host, port = relay.host, relay.port
    with socket.create_connection((host, port), WAIT_S) as sock:
        if sends:
            send(sock, seconds, buffer_bytes)
        else:
            print(json.dumps(receive(sock, seconds)), flush=True)
    os._exit(0)  # whatever is still on its way in a relay is of no interest


def send(sock: socket.socket, seconds: float, buffer_bytes: int) -> None:
    """Send as fast as the socket takes it, until the other end has enough.

    It has so when bytes came for `seconds`. Little is on the way: a slow link must end soon.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    piece, until_s = bytes(_READ_BYTES), time.monotonic() + WAIT_S + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            sock.send(piece)
        except OSError:
            return


def receive(sock: socket.socket, seconds: float) -> list[tuple[float, int]]:
    """Each arrival: seconds since the first one, bytes so far.

    The first may take long: what another transfer has left in a slow link's queue comes before.
    """
    arrivals: list[tuple[float, int]] = []
    began_s, total_bytes, until_s = 0.0, 0, time.monotonic() + WAIT_S
    while (left_s := until_s - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            data = sock.recv(_READ_BYTES)
        except OSError:
            break
        if not data:
            break
        now_s = time.monotonic()
        if not arrivals:
            began_s, until_s = now_s, now_s + seconds
        total_bytes += len(data)
        arrivals.append((now_s - began_s, total_bytes))
    return arrivals


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
