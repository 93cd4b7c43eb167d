"""`Place`: what a device process is put into before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Files to join (control groups), a network namespace, and options of the device's command
    line; an empty place is this host as it is."""

    join: Sequence[Path] = ()
    netns: Path | None = None
    options: Sequence[str] = ()
