"""What a device may ask for while it works."""

from __future__ import annotations

import pytest

from broker_server.work import Progress, Work
from edge_runtime.errors import WireError
from edge_runtime.parts import ModelParts
from edge_runtime.protocol.messages import Artifact, BlobRef, Fetch, Want
from tests.broker_server.sample_model import make_assign


def test_a_device_may_ask_for_its_frames_twice_and_a_window_more() -> None:
    frame = BlobRef(bytes(16), 32 * 4096)
    assign = make_assign(artifacts={"backbone": Artifact(b"b" * 16, b"", [frame])})
    work = Work({"a": assign}, lambda client: assign, ModelParts({}, None, ()))  # type: ignore[arg-type]
    progress = Progress(work, assign, 10, lambda: 0.0, 60.0)
    for _ in range(2):  # 2 * 32 and 64 chunks: each of these is answered with 64
        progress.ask_again(Fetch([Want(frame.digest, 0, 4096)]), 4096)
    with pytest.raises(WireError) as caught:
        progress.ask_again(Fetch([Want(frame.digest, 0, 1)]), 4096)
    assert caught.value.reason == "greedy-fetch"
