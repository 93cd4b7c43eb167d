"""How fast a part reaches a device through a real broker, and what that takes of its memory.

The part travels as one whole frame, and is fetched by the `Supply` that devices run. As a script
this is the device: it connects, fetches the frame, builds the part, and prints what that took as
JSON: until the whole frame was there ("transfer") and until the part was built from it ("built").
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.codec import encode, parse_coding
from edge_runtime.contents import PROGRAM, Contents
from edge_runtime.protocol.blob import BlobShelf, chunk, digest, make_ref
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import DeviceMailbox, ServerMailbox
from edge_runtime.protocol.messages import CHUNK_BYTES, Artifact, Assign, BlobRef, Chunk, Welcome
from edge_runtime.supply import Supply
from edge_runtime.tensor_blob import pack_tensors
from edge_runtime.transport.mqtt import MqttLink

BROKERS = ("mosquitto", "amqtt")
FEDERATION, KIND = "wire", "backbone"
WAIT_S = 60.0
SHELF_BYTES = 256 << 20


def measure(brokers: list[str], sizes_mib: list[int], repeats: int) -> list[dict[str, Any]]:
    """Per broker and size the medians of MB/s and of the rise of the device's peak, MiB."""
    from broker_server.brokers.broker import open_broker  # not in the device's memory

    rows = []
    for kind in brokers:
        with (
            tempfile.TemporaryDirectory() as folder,
            open_broker(kind, None, Path(folder)) as broker,
        ):
            link = MqttLink(broker.host, broker.port, "wire-server")
            mailbox = ServerMailbox(link, FEDERATION, Ledger())
            for mib in sizes_mib:
                found = [
                    _transfer(mailbox, mib, seed, broker.host, broker.port)
                    for seed in range(repeats)
                ]
                medians = {key: statistics.median(f[key] for f in found) for key in found[0]}
                rows.append({"broker": kind, "mib": mib, **medians})
            link.close()
    return rows


def _transfer(
    mailbox: ServerMailbox, mib: int, seed: int, host: str, port: int
) -> dict[str, float]:
    """A part of `mib` MiB from this process to another; retained, as a round's frames are."""
    rng = np.random.default_rng(seed)
    tensors = {"weight": rng.normal(size=(mib, 1 << 18)).astype(np.float32)}
    data = encode(tensors, parse_coding("raw"), rng, described=True)
    ref = make_ref(data)
    indexes = range(ref.chunks(CHUNK_BYTES))
    for index in indexes:
        while not mailbox.link.has_room():
            time.sleep(0.001)
        part = chunk(ref.digest, data, index, CHUNK_BYTES)
        mailbox.offer(ref.digest, KIND, index, part.data, retain=True)
    if not mailbox.link.flush(WAIT_S):
        sys.exit("the broker does not take the frame")
    names = [digest(pack_tensors(tensors)).hex(), ref.digest.hex(), str(ref.size_bytes)]
    done = subprocess.run(
        [sys.executable, __file__, host, str(port), *names], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr.strip())
    for index in indexes:
        mailbox.withdraw(ref.digest, index)
    mailbox.link.flush(WAIT_S)
    result: dict[str, float] = json.loads(done.stdout)
    return result


class TimedSupply(Supply):
    """Notes when a frame is whole, before its part is built."""

    whole_s, whole_kib = 0.0, 0

    def _build_all(self) -> None:
        if self._frames:
            self.whole_s, self.whole_kib = time.perf_counter(), _memory_kib("VmHWM")
        super()._build_all()


def receive(host: str, port: int, artifact: Artifact) -> dict[str, float]:
    """Fetch and build the part as a device does; what it took."""
    link = MqttLink(host, port, "wire-device")
    mailbox = DeviceMailbox(link, FEDERATION, "device", Ledger())
    contents = Contents(BlobShelf(SHELF_BYTES))
    (ref,) = artifact.frames
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    resting_kib, began_s = _memory_kib("VmRSS"), time.perf_counter()
    welcome = Welcome("wire", CHUNK_BYTES, retained=True)
    supply = TimedSupply(_work(artifact, contents), welcome, contents, mailbox, time.monotonic)
    while not supply.complete:
        supply.ask()
        message = mailbox.receive(min(supply.next_ask_s(), WAIT_S))
        if isinstance(message, Chunk):
            supply.accept(message)
    ended_s, peak_kib = time.perf_counter(), _memory_kib("VmHWM")
    supply.close()
    link.close()
    return {
        "mb_per_s": ref.size_bytes / (supply.whole_s - began_s) / 1e6,
        "peak_rise_mib": (supply.whole_kib - resting_kib) / 1024,
        "built_mb_per_s": ref.size_bytes / (ended_s - began_s) / 1e6,
        "built_peak_rise_mib": (peak_kib - resting_kib) / 1024,
    }


def _work(artifact: Artifact, contents: Contents) -> Assign:
    """Work of which the device has all but the backbone."""
    held = Artifact(digest(b"held"), b"", [])
    contents.put(PROGRAM, held.digest, b"held")
    return Assign(
        session="wire",
        round=1,
        attempt=1,
        counted=0,
        experts=[0],
        training_program=held,
        evaluation_program=held,
        backbone=artifact,
        gate=held,
        expert_parts=[held],
        local_gate=False,
        epochs=1,
        batch=1,
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.0,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        clip_norm=0.0,
        seed=0,
        codec="raw",
    )


def _memory_kib(key: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))


if __name__ == "__main__":
    _host, _port, _content, _frame, _size_bytes = sys.argv[1:]
    _ref = BlobRef(bytes.fromhex(_frame), int(_size_bytes))
    _artifact = Artifact(bytes.fromhex(_content), b"", [_ref])
    print(json.dumps(receive(_host, int(_port), _artifact)))
