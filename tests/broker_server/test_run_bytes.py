"""A run's sums, against the rows taken one by one; tables of a crowd."""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from broker_server.books.byte_tables import MOST_DEVICES, budgets, by_client
from broker_server.books.link_bytes import carried, link_rows, total_bytes
from broker_server.books.run_bytes import RunBytes, added
from broker_server.record import BytesRow, RoundRecord
from tests.broker_server.sample_records import KINDS, byte_rows, client_round, round_record

ROWS = st.lists(
    st.builds(
        lambda side, client, way, kind, payload, more, messages: BytesRow(
            side, client, way, kind, payload, payload + more, messages
        ),
        st.sampled_from(["server", "device"]),
        st.sampled_from(["", "*", "ann", "bob"]),
        st.sampled_from(["up", "down"]),
        st.sampled_from([*KINDS, "connection"]),
        st.integers(0, 3),
        st.integers(0, 8),
        st.integers(0, 2),
    ),
    max_size=12,
)


def rounds_of(many: Iterable[list[BytesRow]]) -> list[RoundRecord]:
    return [replace(round_record(n), bytes=rows) for n, rows in enumerate(many, 1)]


def shown(table: RenderableType | None) -> list[list[str]]:
    assert table is not None
    paper = Console(file=io.StringIO(), width=100)
    with paper.capture() as capture:
        paper.print(table)
    return [re.split(r" {2,}", line.rstrip()) for line in capture.get().splitlines()]


@given(st.lists(ROWS, max_size=3))
def test_sums_are_those_of_the_links_rows(many: list[list[BytesRow]]) -> None:
    run = RunBytes.of(rounds_of(many))
    links = [row for rows in many for row in link_rows(rows)]
    ours = [row for rows in many for row in rows if row.side == "server"]
    by_device: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    takers: defaultdict[str, set[str]] = defaultdict(set)
    for row in links:
        by_device[row.client] += row.wire_bytes
        by_kind[row.kind] += row.wire_bytes
        takers[row.kind].add(row.client)
    assert {c: added(f.values()).wire_bytes for c, f in run.devices.items()} == dict(by_device)
    assert {kind: sums.wire_bytes for kind, sums in run.kinds.items()} == dict(by_kind)
    assert run.takers == takers
    assert run.links.as_dict() == {
        "uplink_bytes": total_bytes(links, "up"),
        "downlink_bytes": total_bytes(links, "down"),
        "payload_bytes": sum(row.payload_bytes for row in links),
        "messages": sum(row.messages for row in links),
    }
    assert run.server.up.wire_bytes == total_bytes(ours, "up")
    assert sum(run.egress.values()) == total_bytes(ours, "down")
    for one, rows in zip(run.rounds, many, strict=True):
        assert one.links.wire_bytes == sum(row.wire_bytes for row in link_rows(rows))
        assert one.links.wire_bytes == sum(link.total_bytes for link in carried(rows).values())


@given(st.lists(ROWS, min_size=1, max_size=3))
def test_a_round_that_may_change_is_not_kept(many: list[list[BytesRow]]) -> None:
    def plain(run: RunBytes) -> dict[str, object]:
        return {**vars(run), "means": run.means.typical(), "budgets": run.budgets.found()}

    *earlier, last = rounds_of(many)
    run = RunBytes.of(earlier)
    for _ in range(2):
        assert plain(run.with_last(last)) == plain(RunBytes.of([*earlier, last]))
    assert plain(run) == plain(RunBytes.of(earlier))


def test_tables_by_device_sum_up_a_crowd() -> None:
    names = [f"device-{number:02d}" for number in range(MOST_DEVICES + 3)]
    more = BytesRow("device", names[-1], "down", "gate", 10**6, 10**6, 0)
    clients = [replace(client_round(name), budget_bytes=40_000) for name in names]
    record = replace(round_record(1), clients=clients, bytes=[*byte_rows(names), more])
    run = RunBytes.of([record])
    lines = shown(by_client(run))
    ups = [line[0] for line in lines if len(line) > 1 and line[1] == "up"]
    assert len(ups) == MOST_DEVICES + 1 and names[-1] in ups
    assert ups[-1] == "3 others, with fewer bytes each"
    control = next(line for line in lines if line[0] == ups[-1])[5]
    assert control == "14.8 KiB"  # 3 devices, 5058 bytes each
    found = shown(budgets(run))
    assert sum(line[0].startswith("device-") for line in found) == MOST_DEVICES
    assert next(line for line in found if line[0] == names[-1])[-2:] == ["1 of 1", "round 1"]
    (others,) = (line for line in found if line[0].startswith("3 others"))
    assert others[-2:] == ["0 of 3", "never"]
