"""Parts of messages, and the limits that go with them. Each checks itself when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.errors import WireError

DIGEST_BYTES = 16
CHUNK_BYTES = 256 * 1024
MIN_CHUNK_BYTES = 4 * 1024
MAX_MESSAGE_BYTES = CHUNK_BYTES + 16 * 1024
MAX_BLOB_BYTES = 1 << 30
MAX_ITEMS = 4096
MAX_TEXT = 1024
MAX_HELD = 1024


@dataclass(frozen=True)
class BlobRef:
    """Names a blob that travels: its content digest and its size."""

    digest: bytes
    size_bytes: int

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if not 0 < self.size_bytes <= MAX_BLOB_BYTES:
            raise WireError("bad-size", f"{self.size_bytes} bytes; expected 1 to {MAX_BLOB_BYTES}")

    def chunks(self, chunk_bytes: int) -> int:
        """How many chunks of `chunk_bytes` the blob travels in."""
        return -(-self.size_bytes // chunk_bytes)


@dataclass(frozen=True)
class Artifact:
    """A content that a device needs, and how it comes to it.

    `digest` names the content. Without `frames` the device holds it already. `frames` are applied
    in order: to the content whose digest is `base`, or the first one is whole and `base` is empty.
    """

    digest: bytes
    base: bytes
    frames: list[BlobRef]

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if self.base:
            check_digest(self.base)
        if self.base and not self.frames:
            raise WireError("bad-artifact", "a base without frames")


@dataclass(frozen=True)
class Moved:
    """What a device's socket moved for one kind of thing.

    Payload bytes, whole MQTT packets' bytes, messages; up is what it sent.
    """

    kind: str
    up_payload_bytes: int
    up_wire_bytes: int
    up_messages: int
    down_payload_bytes: int
    down_wire_bytes: int
    down_messages: int

    def __post_init__(self) -> None:
        sizes = (
            (self.up_payload_bytes, self.up_wire_bytes, self.up_messages),
            (self.down_payload_bytes, self.down_wire_bytes, self.down_messages),
        )
        for payload_bytes, wire_bytes, messages in sizes:
            if not 0 <= payload_bytes <= wire_bytes or messages < 0:
                raise WireError("bad-account", f"{payload_bytes} of {wire_bytes} bytes")


@dataclass(frozen=True)
class Want:
    """A range of chunks of one blob."""

    digest: bytes
    first: int
    count: int

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if self.first < 0 or not 0 < self.count <= MAX_ITEMS:
            raise WireError("bad-want", f"first {self.first}, count {self.count}")


def check_digest(name: bytes) -> None:
    """Raise `WireError` unless `name` may be a digest."""
    if len(name) != DIGEST_BYTES:
        raise WireError("bad-digest", f"expected {DIGEST_BYTES} bytes, got {len(name)}")


def check_held(names: list[bytes]) -> None:
    """Raise `WireError` unless `names` may be the digests of what a device holds."""
    if len(names) > MAX_HELD:
        raise WireError("malformed", f"{len(names)} digests; at most {MAX_HELD} are allowed")
    for name in names:
        check_digest(name)
