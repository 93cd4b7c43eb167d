"""What a round moves over one device's link: about how many bytes, whole MQTT packets, both ways.

Frames are counted packet by packet. Messages are counted as runs showed them (quickstart and HAR,
930 to 990 bytes with 2 experts), rounded up. What a broker that retains nothing is asked for is not
in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_runtime.codec import Coding
from edge_runtime.parts import GATE, ModelParts, Tensors
from edge_runtime.protocol.messages import CHUNK_BYTES, DIGEST_BYTES, BlobRef
from edge_runtime.protocol.topics import blob_topic, down_topic
from edge_runtime.tensor_blob import Shapes

_MESSAGES = 5  # Assign, Fetch, a chunk of the update, Received, Report
_MESSAGES_BYTES = 620  # of these, but for their topics and what comes with each expert
_EXPERT_BYTES = 100  # in Assign and Report, and in a report's account of this round and the last
_END_BYTES, _END_EXPERT_BYTES = 270, 30  # Stop and Account
_NAMED_BYTES = 22  # a frame in Assign
# SUBSCRIBE and its answer, the chunk's packet and its answer, UNSUBSCRIBE and its answer; and the
# topic, which is in three of them.
_CHUNK_BYTES, _TOPICS = 36, 3
_BLOB_BYTES = 2  # before a coded blob's body, see `edge_runtime.codec`


@dataclass(frozen=True)
class RoundCost:
    """A round of the `client` of this `federation`, by chunks of `chunk_bytes`."""

    federation: str
    client: str
    chunk_bytes: int = CHUNK_BYTES

    def messages_bytes(self, k: int) -> int:
        """What is said about work with `k` experts."""
        topic_bytes = len(down_topic(self.federation, self.client))
        return _MESSAGES_BYTES + _MESSAGES * topic_bytes + k * _EXPERT_BYTES

    def end_bytes(self, k: int) -> int:
        """What the end of the run adds to its last round."""
        return _END_BYTES + k * _END_EXPERT_BYTES

    def frames_bytes(self, frames: Iterable[BlobRef]) -> int:
        """All that it takes to bring these frames."""
        return sum(self.frame_bytes(ref.size_bytes) for ref in frames)

    def frame_bytes(self, size_bytes: int) -> int:
        """All that it takes to bring a frame of so many bytes."""
        chunks = -(-size_bytes // self.chunk_bytes)
        topic_bytes = len(blob_topic(self.federation, bytes(DIGEST_BYTES), chunks - 1))
        return size_bytes + _NAMED_BYTES + chunks * (_CHUNK_BYTES + _TOPICS * topic_bytes)


@dataclass(frozen=True)
class UpdateSizes:
    """How many bytes an update of parts of `model` has, about; a local gate stays out of it."""

    model: ModelParts
    local_gate: bool

    def bytes(self, coding: Coding, k: int) -> int:
        """With `k` experts."""
        return self.shared_bytes(coding) + k * self.each_bytes(coding)

    def shared_bytes(self, coding: Coding) -> int:
        """Whatever the experts."""
        return step_bytes(coding, self.model.backbone)

    def each_bytes(self, coding: Coding) -> int:
        """For each expert, with its row of the gate."""
        row_bytes = 0 if self.local_gate else step_bytes(coding, {GATE: self.model.gate[:1]})
        return max(step_bytes(coding, expert) for expert in self.model.experts) + row_bytes


def step_bytes(coding: Coding, part: Tensors) -> int:
    """How many bytes a change of all of `part` is coded in, about; hardly ever more."""
    shapes: Shapes = {name: value.shape for name, value in part.items()}
    size_bytes = _BLOB_BYTES + coding.codec.size_bytes(shapes)
    # What a sparse codec makes of a change depends on the change. Of what it left in the rounds
    # before it makes more than of a change alone: up to 17 % above its own figure were seen.
    return size_bytes + (size_bytes // 5 if coding.codec.biased else 0)
