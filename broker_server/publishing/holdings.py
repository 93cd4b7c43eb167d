"""What each device is known to hold: contents, by digest.

It may be less than what a device does hold, or out of date: then it says so (`Holding`), and its
work is planned again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from edge_runtime.contents import PROGRAM
from edge_runtime.protocol.messages import MAX_HELD, Assign, BlobRef
from edge_runtime.work import contents_of


def frames_of(assign: Assign) -> list[BlobRef]:
    """All frames that work names."""
    return [ref for _, artifact in contents_of(assign) for ref in artifact.frames]


class Holdings:
    """By client; a client that was never heard of holds nothing."""

    def __init__(self) -> None:
        # By digest; the kind is empty where only the device named it. The newest come last.
        self._held: dict[str, dict[bytes, str]] = {}
        self.taken_bytes: Counter[str] = Counter()
        """Payload of the frames that each took for the work it has done, by client."""
        self._under_way: set[str] = set()
        self._unsure: set[str] = set()

    def __getitem__(self, client: str) -> Collection[bytes]:
        return self._held.get(client, {}).keys()

    def say(self, client: str, held: Iterable[bytes]) -> None:
        """The device says what it holds, and that is all."""
        known = self._held.get(client, {})
        self._held[client] = {name: known.get(name, "") for name in held}

    @property
    def sure_bytes(self) -> dict[str, int]:
        """`taken_bytes` of those that took nothing else.

        Who had work and did not report it, or had it planned anew, may have taken any of its
        frames.
        """
        unsure = self._unsure | self._under_way
        return {c: size for c, size in self.taken_bytes.items() if c not in unsure}

    def given(self, client: str) -> None:
        """The device is given work, or a new plan of it."""
        if client in self._under_way:
            self._unsure.add(client)
        self._under_way.add(client)

    def worked(self, client: str, assign: Assign, dropped: Collection[bytes]) -> None:
        """The device has done this work, and let `dropped` go since its last report."""
        frames = {ref.digest: ref.size_bytes for ref in frames_of(assign)}
        self.taken_bytes[client] += sum(frames.values())
        self._under_way.discard(client)
        contents = contents_of(assign)
        parts = {kind for kind, _ in contents if kind != PROGRAM}
        replaced = {artifact.base for _, artifact in contents}
        held = {
            name: kind
            for name, kind in self._held.get(client, {}).items()
            # Of a part a device keeps one version.
            if kind not in parts and name not in replaced
        }
        for kind, artifact in contents:
            held.pop(artifact.digest, None)
            held[artifact.digest] = kind
        kept = [(name, kind) for name, kind in held.items() if name not in set(dropped)]
        self._held[client] = dict(kept[-MAX_HELD:])
