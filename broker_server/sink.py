"""The `Sink` contract: what watches a run.

The coordinator tells its sinks what happens and knows nothing else of them; it never imports one.
A sink only looks: it must not change what it is shown, nor keep the run waiting.

The store is no sink, because the round depends on it: what it writes is where a killed server goes
on from. The coordinator is handed ``Store.write_round`` as a plain function instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from broker_server.books.agreement import Agreement
from broker_server.books.run_bytes import RunBytes
from broker_server.record import RoundRecord

Facts = Mapping[str, Any]
"""What is known before the first round: values that JSON can hold, such as ``name``, ``seed``,
``rounds``, ``devices``, ``experts``, ``model``, ``policy``, ``broker``. Any may be missing."""


class Sink(Protocol):
    """Told of a run, in this order: `started`, `joined`..., `round_finished`..., `finished`; and of
    notes at any time."""

    def started(self, facts: Facts) -> None:
        """The run begins."""

    def note(self, text: str) -> None:
        """What else a user should know now, such as what takes its time."""

    def joined(self, count: int, expected: int) -> None:
        """`count` of `expected` devices are there now."""

    def round_finished(self, record: RoundRecord) -> None:
        """A round is over, and stored."""

    def finished(
        self,
        records: Sequence[RoundRecord],
        directory: Path,
        agreement: Agreement,
        run: RunBytes,
        facts: Facts,
    ) -> None:
        """The run is over; `directory` holds what it leaves. Not called if it broke off.

        `agreement`: the counts of its bytes, compared; empty if they were not. `run`: the sums of
        its bytes. `facts`: as they are now.
        """
