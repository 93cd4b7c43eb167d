"""What a run leaves beside its store: the model and `report.json`, at any time up to its end."""

from __future__ import annotations

from collections.abc import Sequence

from broker_server.books.agreement import Agreement
from broker_server.books.run_bytes import RunBytes
from broker_server.record import RoundRecord
from broker_server.report import write_report
from broker_server.sink import Facts, Sink
from broker_server.state import State
from broker_server.store import Store
from edge_runtime.parts import merge
from model_export.checkpoint import save_model
from model_export.models import ModelSpec


class Results:
    """The rounds so far: their records, and the sums of their bytes, each row counted once."""

    def __init__(self, store: Store, facts: Facts) -> None:
        """With the rounds that the store has."""
        self._directory = store.path.parent
        self.facts = facts
        self.records = store.records()
        self.agreement = store.agreement()
        self._earlier = RunBytes.of(self.records[:-1])  # all but the last, which the end adds to

    def add(self, record: RoundRecord) -> None:
        """One more round; what was said of the end of the run before it is no more."""
        if self.records:
            self._earlier.add(self.records[-1])
        self.records.append(record)
        self.agreement = ()

    def close(self, last: RoundRecord, agreement: Agreement = ()) -> None:
        """The last round as the end of the run leaves it."""
        self.records[-1] = last
        self.agreement = agreement

    def write(self) -> None:
        """`report.json`, with what is known now."""
        write_report(self._directory, self.records, self.facts, self.agreement, self._run())

    def save_model(self, spec: ModelSpec, state: State) -> None:
        """The global model as files."""
        save_model(self._directory / "model", spec, merge(state.model))

    def show(self, sinks: Sequence[Sink]) -> None:
        """Tell the sinks that the run is over."""
        run = self._run()
        for sink in sinks:
            sink.finished(self.records, self._directory, self.agreement, run, self.facts)

    def _run(self) -> RunBytes:
        return self._earlier.with_last(self.records[-1]) if self.records else self._earlier
