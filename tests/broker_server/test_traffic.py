"""The cuts of all rounds add up to what the socket moved, whatever waits when they are made."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker_server.traffic import Traffic
from edge_runtime.ledger import Ledger, total_wire_bytes
from edge_runtime.mailbox import DeviceMailbox, ServerMailbox, up_topic
from edge_runtime.memory_link import MemoryBroker, MemoryLink
from edge_runtime.messages import Failed, Gone, Received

FEDERATION = "fed"
STEPS = st.one_of(
    st.tuples(st.just("device speaks"), st.integers(0, 400)),
    st.tuples(st.just("stranger speaks"), st.integers(0, 400)),
    st.tuples(st.just("server speaks"), st.just(0)),
    st.tuples(st.just("server listens"), st.integers(1, 3)),
    st.tuples(st.just("cut"), st.just(0)),
)


@given(st.lists(STEPS, max_size=40))
def test_all_cuts_add_up_to_the_socket(steps: list[tuple[str, int]]) -> None:
    broker = MemoryBroker()
    link = MemoryLink(broker, "server", inbox_packets=4)  # more than that is lost, but has come in
    server = ServerMailbox(link, FEDERATION, Ledger())
    server.know("ann")
    device = DeviceMailbox(MemoryLink(broker, "ann"), FEDERATION, "ann", Ledger())
    stranger = MemoryLink(broker, "stranger")
    traffic = Traffic(server)
    total, sums = Ledger(), Counter[str]()

    def cut() -> None:
        round_traffic = traffic.cut()
        assert all(row.wire_bytes >= 0 for row in round_traffic.rows)
        assert round_traffic.downlink_bytes == round_traffic.socket_sent_bytes
        assert round_traffic.uplink_bytes == round_traffic.socket_received_bytes
        total.merge(round_traffic.rows)
        sums.update(round_traffic.drops)

    acts: dict[str, Any] = {
        "device speaks": lambda size: device.send(Failed("s", 1, 1, "x" * size, 0)),
        "stranger speaks": lambda size: stranger.publish(up_topic(FEDERATION, "x"), bytes(size)),
        "server speaks": lambda _: server.send("ann", Received("s", 1, 1)),
        "server listens": lambda count: [server.receive(0) for _ in range(count)],
        "cut": lambda _: cut(),
    }
    for act, value in steps:
        acts[act](value)
    while server.receive(0) is not None:
        pass
    cut()
    assert total_wire_bytes(total.rows(), "down") == link.sent_bytes
    assert total_wire_bytes(total.rows(), "up") == link.received_bytes
    assert sums["inbox-full"] == link.overflowed


def test_what_waits_at_a_cut_belongs_to_the_next_round() -> None:
    broker = MemoryBroker()
    link = MemoryLink(broker, "server")
    server = ServerMailbox(link, FEDERATION, Ledger())
    server.know("ann")
    DeviceMailbox(MemoryLink(broker, "ann"), FEDERATION, "ann", Ledger()).send(Gone("x"))
    traffic = Traffic(server)
    assert traffic.cut().rows == []
    assert server.receive(0) == ("ann", Gone("x"))
    second = traffic.cut()
    assert {(row.client, row.kind) for row in second.rows} == {("ann", "message")}
    assert (second.uplink_bytes, second.downlink_bytes) == (link.received_bytes, 4)
