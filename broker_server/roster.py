"""Who is in the federation: devices that said hello, fit the model, and are there now."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

from broker_server.record import Device
from edge_runtime.protocol.mailbox import MAX_CLIENTS
from edge_runtime.protocol.messages import CHUNK_BYTES, Hello, Reject, Welcome
from model_export.models import ModelSpec

MAX_SAMPLES = 1_000_000_000
LOSSLESS = "raw"
"""The codec that all know: whole parts can always be sent in it."""

KERNELS = {"native": "native", "executorch": "stock"}
"""Which kernels a trainer's programs call, by the trainer's name."""


@dataclass(frozen=True)
class Member:
    """A device as it described itself, and whether it is connected."""

    client: str
    hello: Hello
    present: bool = True

    @property
    def kernels(self) -> str:
        """Which kernels its programs call."""
        return KERNELS[self.hello.trainer]

    @property
    def device(self) -> Device:
        """What the run's record says of it."""
        hello = self.hello
        return Device(
            client=self.client,
            samples=hello.samples,
            test_samples=hello.test_samples,
            trainer=hello.trainer,
            machine=hello.machine,
            cores=hello.cores,
            memory_available_bytes=hello.memory_available_bytes,
            version=hello.version,
            board=hello.board,
            link=hello.link,
        )


class Roster:
    """All members by name, present or not."""

    def __init__(
        self,
        spec: ModelSpec,
        session: str,
        uplink: str = "raw",
        chunk_bytes: int = CHUNK_BYTES,
        retained: bool = True,
    ) -> None:
        """`uplink` names the codec of updates; the rest is what devices are welcomed with."""
        self._spec = spec
        self._session = session
        self._uplink = uplink
        self._welcome = Welcome(session, chunk_bytes, retained)
        self._members: dict[str, Member] = {}
        self._present: set[str] = set()
        self._useful: set[str] = set()  # who has done work
        self._spare: dict[str, None] = {}  # who left without, the longest ago first
        self.rejected: dict[str, str] = {}  # why, by client: for people to read

    def admit(self, client: str, hello: Hello) -> Welcome | Reject:
        """The answer to a device's hello."""
        reason = self._objection(hello)
        full = client not in self._members and len(self._members) == MAX_CLIENTS
        if full and not reason and self._spare:
            self._forget(next(iter(self._spare)))
        elif full:
            reason = reason or f"the federation is full, it has {MAX_CLIENTS} devices"
        if reason:
            self._forget(client)
            if len(self.rejected) < MAX_CLIENTS:  # anyone may invent names
                self.rejected[client] = reason
            return Reject(self._session, reason)
        self.rejected.pop(client, None)
        self._members[client] = Member(client, hello)
        self._present.add(client)
        self._spare.pop(client, None)
        return self._welcome

    def worked(self, client: str) -> None:
        """This device has done work: it keeps its place though it leaves and the rest is full."""
        if client in self._members:
            self._useful.add(client)
            self._spare.pop(client, None)

    def leave(self, client: str) -> None:
        """A device is gone; what it said is kept for when it returns, as long as there is room."""
        member = self._members.get(client)
        if member is not None:
            self._members[client] = Member(client, member.hello, present=False)
            self._present.discard(client)
            if client not in self._useful:
                self._spare[client] = None

    @property
    def chunk_bytes(self) -> int:
        """How long the chunks are that blobs travel in."""
        return self._welcome.chunk_bytes

    def __getitem__(self, client: str) -> Member:
        return self._members[client]

    def __contains__(self, client: str) -> bool:
        return client in self._members

    @property
    def present(self) -> list[str]:
        """The names of those who are there, ascending: every order in a round comes from here."""
        return sorted(self._present)

    @property
    def count(self) -> int:
        """How many are there."""
        return len(self._present)

    @property
    def shared_codecs(self) -> set[str]:
        """The codecs and compressors that all know who are there; none if nobody is."""
        known = [set(self._members[name].hello.codecs) for name in self.present]
        return set.intersection(*known) if known else set()

    def _forget(self, client: str) -> None:
        self._members.pop(client, None)
        self._present.discard(client)
        self._useful.discard(client)
        self._spare.pop(client, None)

    def _objection(self, hello: Hello) -> str:
        spec = self._spec
        if hello.trainer not in KERNELS:
            return (
                f"its trainer is {reprlib.repr(hello.trainer)}, this server has programs for "
                f"{' and '.join(KERNELS)}; start it with one of these as --trainer"
            )
        if unknown := [codec for codec in (LOSSLESS, self._uplink) if codec not in hello.codecs]:
            return (
                f"it does not know the codec {unknown[0]!r}; give it the same flexmoe and codecs "
                "as the server, or choose another wire.uplink"
            )
        if tuple(hello.shape) != spec.shape:
            return (
                f"its samples have shape {hello.shape}, model {spec.name!r} takes "
                f"{list(spec.shape)}; give it data of this experiment's data set"
            )
        if not 1 <= hello.labels <= spec.classes:
            return f"its labels go up to {hello.labels - 1}, the model has {spec.classes} classes"
        if not 1 <= hello.samples <= MAX_SAMPLES or hello.test_samples < 0:
            return (
                f"it has {hello.samples} training and {hello.test_samples} test samples; "
                f"1 to {MAX_SAMPLES} and 0 or more are needed"
            )
        return ""
