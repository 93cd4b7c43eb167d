"""A device says hello: on each connection, again and again until the server answers."""

from __future__ import annotations

import platform
from collections.abc import Callable

from edge_runtime import __version__
from edge_runtime.cgroup import read_usage, usable_cores
from edge_runtime.codec import known_codecs
from edge_runtime.contents import Contents
from edge_runtime.errors import FlexmoeError
from edge_runtime.own_account import OwnAccount
from edge_runtime.protocol.mailbox import DeviceMailbox
from edge_runtime.protocol.messages import Hello
from edge_runtime.shard import Shard
from edge_runtime.telemetry import usable_memory_bytes

HELLO_EVERY_S = 3.0
HELLO_MOST_S = 60.0


class Refused(FlexmoeError):
    """This device cannot take part at all."""


class Greeting:
    """Who a device is, and on which connection the server has heard it."""

    def __init__(
        self,
        mailbox: DeviceMailbox,
        shard: Shard,
        trainer: str,
        contents: Contents,
        link_class: str,
        memory_limit_bytes: int | None,
        clock: Callable[[], float],
        board: str = "",
    ) -> None:
        """`trainer`, `link_class` and `board` by name.

        `memory_limit_bytes`: what training may use; None: what is free.
        """
        self._mailbox = mailbox
        self._shard = shard
        self._trainer = trainer
        self._contents = contents
        self._link_class = link_class
        self._memory_limit_bytes = memory_limit_bytes
        self._memory_available_bytes: int | None = None  # as told to the server
        self._clock = clock
        self._board = board
        self.said = 0  # hellos in all
        self.account = OwnAccount(mailbox)
        self._answered_on = 0  # the connection whose hello the server last answered
        self._said_on = 0  # the connection on which the last hello was said, and when
        self._said_at_s = -HELLO_MOST_S
        self._wait_s = HELLO_EVERY_S  # until the next hello, if there is no answer

    def say(self, session: str) -> None:
        """Hello, if it is time; `Refused` if another device has this one's name."""
        link, now_s = self._mailbox.link, self._clock()
        if link.contested:
            raise Refused(
                f"another device with the id {self._mailbox.client!r} is connected to this broker: "
                "give each device its own --id; or else the broker refuses what we send: see its "
                "log"
            )
        connection = link.connections
        again = connection == self._said_on
        if connection == self._answered_on or (again and now_s - self._said_at_s < self._wait_s):
            return
        # A server that is not there yet calls the roll when it comes: no need to ask often.
        longer_s = min(2 * self._wait_s, HELLO_MOST_S) if again else 0.0
        self._wait_s = max(HELLO_EVERY_S, longer_s)
        self._said_on, self._said_at_s = connection, now_s
        self.said += 1
        if self._memory_available_bytes is None:
            # Measured once: later, the device's own program would count against it.
            self._memory_available_bytes = usable_memory_bytes(self._memory_limit_bytes)
        kills = read_usage().memory_kills
        self.account.hello()
        self._mailbox.send(
            Hello(
                session=session,
                samples=self._shard.samples,
                test_samples=self._shard.test_samples,
                shape=list(self._shard.shape),
                labels=self._shard.labels,
                trainer=self._trainer,
                machine=platform.machine(),
                cores=usable_cores(),
                memory_available_bytes=self._memory_available_bytes,
                version=__version__,
                link=self._link_class,
                board=self._board,
                memory_kills=-1 if kills is None else kills,
                codecs=known_codecs(),
                held=self._contents.tell_held(),
            )
        )

    def repeat(self) -> None:
        """The server calls the roll: hello is due at once."""
        self._answered_on, self._wait_s = 0, 0.0

    def answered(self) -> None:
        """The server answered the last hello.

        That of an earlier connection says nothing about this one: then hello is due again.
        """
        self._answered_on = self._said_on
        self.account.answered()

    @property
    def waits(self) -> bool:
        """Whether the last hello has no answer yet."""
        return self._answered_on != self._said_on
