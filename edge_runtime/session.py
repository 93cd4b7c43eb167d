"""What a device remembers of one session: nothing of it survives into the next."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.protocol.messages import Assign, Report, Welcome


@dataclass(frozen=True)
class Finished:
    """Work that is done: kept until the server has collected it."""

    assign: Assign
    report: Report
    update: bytes
    at_s: float
    greeted: int  # how many hellos were said before it was reported


@dataclass
class Session:
    """Empty until the server has told its name."""

    name: str = ""
    welcome: Welcome | None = None
    next_work: Assign | None = None
    doing: Assign | None = None
    latest: tuple[int, int] = (0, 0)  # round and attempt of the last work that was taken
    called: bool = False  # since then the server called the roll, or said welcome
    finished: Finished | None = None
    upload_s: float = 0.0
