"""`Audit`: a run's bytes as the broker counted them, beside what the server and its devices say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from broker_server.books.agreement import Agreement, compare
from broker_server.brokers.broker import Broker
from broker_server.brokers.broker_counters import BrokerCounters, Counted
from broker_server.record import RoundRecord


class Audit:
    """The counts of one server's life; made before its first byte, closed after the last one."""

    def __init__(self, broker: Broker) -> None:
        """Reads the counters of a broker that ran before us: that may take its `sys_interval`."""
        self._counters = BrokerCounters(broker.host, broker.port)
        self._shared = broker.process is None  # with whoever else uses it
        self._before: Counted | None = self._counters.read() if self._shared else broker.greeted

    def close(
        self,
        records: Sequence[RoundRecord],
        told: Collection[str],
        planned: Mapping[str, int],
        resumed: bool,
        lost: Collection[str] = (),
    ) -> Agreement:
        """The counts of `records`, compared (see `compare`); all devices have gone."""
        after = self._counters.read() if self._before else None
        counted = after.since(self._before) if after and self._before else None
        return compare(records, told, counted, planned, resumed, self._shared, lost)
