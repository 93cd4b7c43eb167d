"""What a device tells of its bytes is what it moved since a server was there to hear it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.own_account import OwnAccount
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import DeviceMailbox, ServerMailbox
from edge_runtime.protocol.messages import Gone, Moved, Received, Rollcall
from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink

FEDERATION, NAME = "fed", "ann"
ANSWER = Received("s", 1, 1)


class World:
    """A device that is there before its server, perhaps."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.link = MemoryLink(self.broker, NAME)
        self.mailbox = DeviceMailbox(self.link, FEDERATION, NAME, Ledger())
        self.account = OwnAccount(self.mailbox)
        self.server: ServerMailbox | None = None

    def serve(self) -> ServerMailbox:
        self.server = ServerMailbox(MemoryLink(self.broker, "server"), FEDERATION, Ledger())
        return self.server

    def hello(self, size: int = 100) -> None:
        self.account.hello()
        self.mailbox.send(Gone("x" * size))

    def answer(self) -> None:
        assert self.server is not None
        while self.server.receive(0) is not None:
            self.server.send(NAME, ANSWER)

    def take(self) -> None:
        while self.mailbox.receive(0) is not None:
            self.account.answered()


def up_bytes(told: list[Moved]) -> int:
    return sum(moved.up_payload_bytes for moved in told)


def messages(told: list[Moved]) -> tuple[int, int]:
    return sum(m.up_messages for m in told), sum(m.down_messages for m in told)


@given(
    st.lists(st.integers(0, 300), max_size=120),
    st.lists(st.integers(0, 300), min_size=1, max_size=4),
)
def test_what_was_said_in_vain_is_not_told(vain: list[int], heard: list[int]) -> None:
    """The server may take its time: several hellos may be on their way to it."""
    world = World()
    for size in vain:
        world.hello(size)
    server = world.serve()
    for size in heard:
        world.hello(size)
    world.answer()
    world.take()
    told = world.account.tell()
    got = sum(row.payload_bytes for row in server.ledger.rows() if row.direction == "up")
    assert messages(told) == (len(heard), len(heard))
    assert up_bytes(told) == got
    moved = world.link.sent_bytes, world.link.received_bytes
    world.hello()
    world.answer()
    world.take()
    later = world.account.tell()
    assert sum(m.up_wire_bytes for m in later) == world.link.sent_bytes - moved[0]
    assert sum(m.down_wire_bytes for m in later) == world.link.received_bytes - moved[1]


def test_who_was_heard_at_once_tells_all() -> None:
    world = World()
    world.serve()
    world.hello()
    world.answer()
    world.take()
    told = world.account.tell()
    assert sum(m.up_wire_bytes for m in told) == world.link.sent_bytes
    assert sum(m.down_wire_bytes for m in told) == world.link.received_bytes


def test_a_roll_that_is_called_later_changes_nothing() -> None:
    """A hello with its answer, that was not the first to be heard."""
    world = World()
    for _ in range(7):
        world.hello()
    world.serve().broadcast(Rollcall("s"))
    assert world.mailbox.receive(0) == Rollcall("s")
    for _ in range(3):
        world.hello()
        world.answer()
        world.take()
    assert messages(world.account.tell()) == (3, 3)


def test_of_another_session_nothing_is_told() -> None:
    world = World()
    world.serve()
    for _ in range(2):
        world.hello()
        world.answer()
        world.take()
    world.account.forget()
    assert messages(world.account.tell()) == (0, 0)
    world.hello()
    world.answer()
    world.take()
    assert messages(world.account.tell()) == (1, 1)
