"""`Contest`: does somebody keep ending our connections right after their start?"""

from __future__ import annotations

from collections import deque

# Two clients of one name push each other out. With a second between attempts each loses a
# connection that lasted one second every two seconds.
LOSSES = 5
WINDOW_S = 20.0
SHORT_CONNECTION_S = 3.0


class Contest:
    """Watches connections come and go; `found` once several short ones were lost in a row."""

    def __init__(self) -> None:
        self.found = False
        self._began_s = 0.0
        self._losses: deque[float] = deque(maxlen=LOSSES)

    def connected(self, now_s: float) -> None:
        """A connection has begun."""
        self._began_s = now_s

    def lost(self, now_s: float) -> None:
        """It has ended, and not by our own doing."""
        if now_s - self._began_s > SHORT_CONNECTION_S:
            self._losses.clear()
            return
        self._losses.append(now_s)
        if len(self._losses) == LOSSES and now_s - self._losses[0] < WINDOW_S:
            self.found = True
