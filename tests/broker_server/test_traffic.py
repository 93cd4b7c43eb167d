"""The cuts of all rounds add up to what the sockets moved, whatever waits when they are made."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker_server.books.link_bytes import link_rows, total_bytes
from broker_server.books.traffic import RoundTraffic, Traffic, merged
from broker_server.record import BytesRow
from broker_server.recording import closed_record
from edge_runtime.protocol.blob import digest
from edge_runtime.protocol.ledger import CONNECTION, Ledger
from edge_runtime.protocol.mailbox import DeviceMailbox, ServerMailbox
from edge_runtime.protocol.messages import Account, Failed, Gone, Moved, Received, Report
from edge_runtime.protocol.topics import up_topic
from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink
from tests.broker_server.sample_records import troubled_record

FEDERATION = "fed"
STEPS = st.one_of(
    st.tuples(st.just("device speaks"), st.integers(0, 400)),
    st.tuples(st.just("stranger speaks"), st.integers(0, 400)),
    st.tuples(st.just("server speaks"), st.just(0)),
    st.tuples(st.just("server listens"), st.integers(1, 3)),
    st.tuples(st.just("cut"), st.just(0)),
)


def socket_bytes(rows: list[BytesRow], side: str, direction: str) -> int:
    return sum(row.wire_bytes for row in rows if (row.side, row.direction) == (side, direction))


@given(st.lists(STEPS, max_size=40))
def test_all_cuts_add_up_to_the_socket(steps: list[tuple[str, int]]) -> None:
    broker = MemoryBroker()
    link = MemoryLink(broker, "server", inbox_packets=4)  # more than that is lost, but has come in
    server = ServerMailbox(link, FEDERATION, Ledger())
    server.know("ann")
    device = DeviceMailbox(MemoryLink(broker, "ann"), FEDERATION, "ann", Ledger())
    stranger = MemoryLink(broker, "stranger")
    traffic = Traffic(server)
    rows, sums, egress, ingress = list[BytesRow](), Counter[str](), 0, 0

    def cut() -> None:
        nonlocal egress, ingress
        round_traffic = traffic.cut()
        assert all(row.wire_bytes >= 0 for row in round_traffic.rows)
        assert socket_bytes(round_traffic.rows, "server", "down") == round_traffic.egress_bytes
        assert socket_bytes(round_traffic.rows, "server", "up") == round_traffic.ingress_bytes
        rows.extend(round_traffic.rows)
        sums.update(round_traffic.drops)
        egress += round_traffic.egress_bytes
        ingress += round_traffic.ingress_bytes

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
    assert (egress, ingress) == (link.sent_bytes, link.received_bytes)
    assert merged(rows) == sorted(set(merged(rows)))
    assert socket_bytes(merged(rows), "server", "up") == link.received_bytes
    assert sums["inbox-full"] == link.overflowed


def test_what_waits_at_a_cut_belongs_to_the_next_round() -> None:
    broker = MemoryBroker()
    link = MemoryLink(broker, "server")
    server = ServerMailbox(link, FEDERATION, Ledger())
    server.know("ann")
    DeviceMailbox(MemoryLink(broker, "ann"), FEDERATION, "ann", Ledger()).send(Gone("x"))
    traffic = Traffic(server)
    first = traffic.cut()
    assert not any(row.client == "ann" for row in first.rows)
    before = link.received_bytes
    assert server.receive(0) == ("ann", Gone("x"))
    second = traffic.cut()
    assert {(row.client, row.kind) for row in second.rows} == {("ann", "control")}
    assert second.ingress_bytes == link.received_bytes - first.ingress_bytes <= before
    assert second.egress_bytes == 4  # its acknowledgement


class World:
    """A server and devices that work through rounds; each account comes with its report."""

    def __init__(self, names: list[str]) -> None:
        broker = MemoryBroker()
        self.link = MemoryLink(broker, "server")
        self.server = ServerMailbox(self.link, FEDERATION, Ledger())
        self.links = {name: MemoryLink(broker, name) for name in names}
        self.devices = {
            name: DeviceMailbox(link, FEDERATION, name, Ledger())
            for name, link in self.links.items()
        }
        self.traffic = Traffic(self.server)
        self.accounts: dict[str, list[Moved]] = {}
        for name in names:
            self.server.know(name)

    def listen(self) -> None:
        while (received := self.server.receive(0)) is not None:
            client, message = received
            if isinstance(message, Report):
                self.accounts[client] = message.account

    def drain(self, name: str) -> None:
        while self.devices[name].receive(0) is not None:
            pass

    def take(self, name: str, data: bytes) -> None:
        """The device takes a frame, published once."""
        self.devices[name].listen(digest(data), "backbone", [0])
        self.server.offer(digest(data), "backbone", 0, data, retain=False)
        self.drain(name)
        self.devices[name].unlisten(digest(data), [0])

    def report(self, name: str, update_bytes: int) -> None:
        """As a device does: the report with the account first, the update after it."""
        account = self.devices[name].account()
        self.accounts[name] = account
        self.devices[name].send(Failed("s", 1, 1, "x" * update_bytes, 0))
        self.listen()
        self.server.send(name, Received("s", 1, 1))
        self.drain(name)


ROUNDS = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["ann", "bob"]), st.integers(1, 900), st.integers(0, 900)),
        max_size=4,
    ),
    min_size=1,
    max_size=4,
)


@given(ROUNDS)
def test_the_links_of_all_rounds_add_up_to_the_devices_sockets(
    rounds: list[list[tuple[str, int, int]]],
) -> None:
    """Whatever a round is given of the update before, in the end every byte is there once."""
    world = World(["ann", "bob"])
    rows, up, down = list[BytesRow](), 0, 0
    for work in rounds:
        for name, frame_bytes, update_bytes in work:
            world.take(name, bytes(frame_bytes))
            if name not in world.accounts:
                world.report(name, update_bytes)
        cut = world.traffic.cut(world.accounts)
        world.accounts = {}
        rows += link_rows(cut.rows)
        up, down = up + cut.uplink_bytes, down + cut.downlink_bytes
    last = {name: Account("s", device.account()) for name, device in world.devices.items()}
    moved = {name: (link.sent_bytes, link.received_bytes) for name, link in world.links.items()}
    for name, message in last.items():
        world.devices[name].send(message)
    sent = {name: world.links[name].sent_bytes - moved[name][0] for name in last}
    world.listen()
    closing = world.traffic.close(last, {})
    rows += link_rows(closing.rows)
    up, down = up + closing.uplink_bytes, down + closing.downlink_bytes
    assert (
        up == total_bytes(rows, "up") == sum(had + sent[name] for name, (had, _) in moved.items())
    )
    assert down == total_bytes(rows, "down") == sum(had for _, had in moved.values())
    assert all(row.payload_bytes <= row.wire_bytes for row in merged(rows))


def test_an_update_belongs_to_the_round_in_which_it_came() -> None:
    world = World(["ann"])
    world.report("ann", 700)
    first = world.traffic.cut(world.accounts)
    second = world.traffic.cut({"ann": world.devices["ann"].account()})
    assert first.uplink_bytes > 700
    assert second.uplink_bytes == 4  # the acknowledgement of what came after its report
    assert max(row.payload_bytes for row in second.rows if row.side == "device") > 700


def test_accounts_are_put_with_the_round() -> None:
    traffic = World(["ann"]).traffic
    item = Moved("gate", 1, 2, 1, 3, 4, 1)
    cut = traffic.cut({"ann": [item, item], "mute": None, "idle": []})
    assert [row for row in cut.rows if row.side == "device"] == [
        BytesRow("device", "ann", "down", "gate", 6, 8, 2),
        BytesRow("device", "ann", "up", "gate", 2, 4, 2),
    ]


def test_a_silent_device_counts_with_what_the_server_saw() -> None:
    world = World(["ann"])
    world.devices["ann"].send(Gone("x"))
    world.listen()
    world.server.send("ann", Received("s", 1, 1))
    cut = world.traffic.cut({"ann": None})
    (said,) = [row for row in cut.rows if (row.client, row.direction) == ("ann", "up")]
    assert cut.uplink_bytes == said.wire_bytes - 4  # without the broker's acknowledgement
    assert cut.downlink_bytes == 0
    assert not any(row.kind == CONNECTION for row in link_rows(cut.rows))


def test_what_a_silent_device_said_before_is_in_the_end() -> None:
    world = World(["ann", "bob"])
    last = {"ann": Account("s", [Moved("gate", 1, 2, 1, 3, 4, 1)])}
    closing = world.traffic.close(last, {"bob": [Moved("gate", 10, 20, 1, 30, 40, 1)]})
    assert [row for row in closing.rows if row.side == "device" and row.kind == "gate"] == [
        BytesRow("device", "ann", "down", "gate", 3, 4, 1),
        BytesRow("device", "ann", "up", "gate", 1, 2, 1),
        BytesRow("device", "bob", "down", "gate", 30, 40, 1),
        BytesRow("device", "bob", "up", "gate", 10, 20, 1),
    ]
    # Only a last word travelled.
    control = [row.client for row in closing.rows if row.side == "device" and row.kind == "control"]
    assert control == ["ann"]


def test_what_the_end_moves_goes_with_the_last_round() -> None:
    last = troubled_record(2)
    same = next(row for row in last.bytes if row.side == "device" and row.direction == "down")
    new = BytesRow("device", "device-09", "up", "connection", 0, 40, 0)
    closed = closed_record(last, RoundTraffic([same, new], 100, 200, {"stale": 1, "late": 2}))
    assert closed.egress_bytes - last.egress_bytes == 100
    assert closed.ingress_bytes - last.ingress_bytes == 200
    assert closed.downlink_bytes - last.downlink_bytes == same.wire_bytes
    assert closed.uplink_bytes - last.uplink_bytes == 40 + 4 * same.messages
    assert closed.drops == {"malformed": 2, "stale": 2, "late": 2}
    assert set(closed.bytes) - set(last.bytes) == {
        new,
        BytesRow("device", same.client, "down", same.kind, *(2 * x for x in sizes(same))),
    }
    assert len(closed.bytes) == len(last.bytes) + 1


def sizes(row: BytesRow) -> tuple[int, int, int]:
    return row.payload_bytes, row.wire_bytes, row.messages
