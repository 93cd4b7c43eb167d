"""`Lane`: one direction of an emulated link. Pure: it is told the time and touches no socket.

What is put in is cut into pieces. Each leaves when the rate allows it, and can be taken `delay_s`
later. All times are computed when a piece comes, so whoever takes pieces late loses no throughput.
"""

from __future__ import annotations

from collections import deque
from random import Random

SEGMENT_BYTES = 1448
"""TCP payload of a full packet on Ethernet, with timestamps."""
QUEUE_BYTES = 64 << 10
"""Held beside what is on its way: enough to keep the rate while the owner sleeps."""
BURST_S = 0.02
MIN_RESEND_S = 0.02
"""What a lost packet costs at least: on a link without delay TCP needs time to notice, too."""
_PIECE_S = 0.005
_UNLIMITED_PIECE_BYTES = 64 << 10
_UNLIMITED_LINE_BYTES = 1 << 20  # for the delay line of a lane without a rate
_LEAST_CHARGE = 256  # a piece of a few bytes takes as much of the interpreter's memory


class Lane:
    """Bytes in order, none lost, held back as a link of that rate, delay and loss would.

    `rate_bps` 0 is no limit. A packet is lost with probability `loss`: it is sent again after one
    more round trip, and everything behind it waits, as TCP would have it.
    """

    def __init__(self, rate_bps: float, delay_s: float, loss: float, random: Random) -> None:
        self._bytes_per_s = rate_bps / 8
        self._delay_s = delay_s
        self._loss = loss
        self._random = random
        line = self._bytes_per_s * delay_s if rate_bps else _UNLIMITED_LINE_BYTES * (delay_s > 0)
        self.most_bytes = QUEUE_BYTES + int(line)
        # With loss a piece is a packet. Without, larger ones save wake-ups: 5 ms of the rate.
        piece_bytes = int(self._bytes_per_s * _PIECE_S) if rate_bps else _UNLIMITED_PIECE_BYTES
        self._piece_bytes = SEGMENT_BYTES if loss else max(SEGMENT_BYTES, piece_bytes)
        self.burst_bytes = max(SEGMENT_BYTES, int(self._bytes_per_s * BURST_S))
        self._pieces: deque[tuple[float, memoryview]] = deque()  # when it can be taken
        self._held_bytes = 0
        self._free_s = -float("inf")  # when the link has sent all that came
        self._last_s = -float("inf")  # when the last piece can be taken
        self._end_s: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will be put in."""
        return self._end_s is not None

    @property
    def room(self) -> int:
        """How many bytes may be put in; 0 until it is worth the while."""
        room = self.most_bytes - self._held_bytes
        return room if room >= QUEUE_BYTES // 4 else 0

    def put(self, data: bytes, now_s: float) -> None:
        """`data` is sent now; at most `room` bytes."""
        view = memoryview(data)
        for start in range(0, len(view), self._piece_bytes):
            piece = view[start : start + self._piece_bytes]
            due_s = self._send(len(piece), now_s) + self._delay_s
            while self._loss and self._random.random() < self._loss:
                again_s = self._send(len(piece), now_s) + self._delay_s
                due_s = max(due_s + max(MIN_RESEND_S, 2 * self._delay_s), again_s)
            self._last_s = max(self._last_s, due_s)
            self._pieces.append((self._last_s, piece))
            self._held_bytes += _charge(len(piece))

    def end(self, now_s: float) -> None:
        """Nothing more comes; the end is on its way like a piece of no bytes."""
        if self._end_s is None:
            self._end_s = max(self._last_s, now_s + self._delay_s)

    def first(self, now_s: float) -> memoryview | None:
        """The next bytes that have arrived by now, if any; they stay until `take`."""
        if self._pieces and self._pieces[0][0] <= now_s:
            return self._pieces[0][1]
        return None

    def take(self, count: int) -> None:
        """Remove so many bytes of `first`."""
        due_s, piece = self._pieces.popleft()
        self._held_bytes -= _charge(len(piece))
        if count < len(piece):
            self._pieces.appendleft((due_s, piece[count:]))
            self._held_bytes += _charge(len(piece) - count)

    def is_over(self, now_s: float) -> bool:
        """Whether all was taken and the end has arrived."""
        return not self._pieces and self._end_s is not None and self._end_s <= now_s

    def next_s(self) -> float | None:
        """When `first` or `is_over` will have something to say, if that is known."""
        return self._pieces[0][0] if self._pieces else self._end_s

    def _send(self, count: int, now_s: float) -> float:
        """When so many bytes will have left: a token bucket, full at the start."""
        if not self._bytes_per_s:
            return now_s
        begin_s = max(self._free_s, now_s - self.burst_bytes / self._bytes_per_s)
        self._free_s = begin_s + count / self._bytes_per_s
        return max(now_s, self._free_s)


def _charge(count: int) -> int:
    """What a piece of so many bytes counts for in what is held."""
    return max(count, _LEAST_CHARGE)
