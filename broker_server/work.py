"""What a round asks of its devices, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker_server.record import Status
from edge_runtime.messages import Assign, Report
from edge_runtime.parts import ModelParts
from edge_runtime.transfer import Download


@dataclass(frozen=True)
class Work:
    """What a round asks of its devices: each one's assignment, and the blobs that they may fetch.

    `model` is what the updates are changes to.
    """

    assigns: Mapping[str, Assign]
    blobs: Mapping[bytes, bytes]
    model: ModelParts


@dataclass(frozen=True)
class Answer:
    """What came of one device's work; with status ``ok`` its update is in the spool.

    `needed_bytes` is what a device says that the work needs, if it failed for lack of memory.
    """

    status: Status
    detail: str = ""
    report: Report | None = None
    needed_bytes: int = 0


@dataclass
class Progress:
    """One device's way through a round; times are the exchange's clock's."""

    work: Work
    assign: Assign
    samples: int
    report: Report | None = None
    download: Download | None = None
    heard_s: float | None = None  # the last chunk, or the begin of waiting for the first
    gone_at_s: float | None = None
    answer: Answer | None = None
