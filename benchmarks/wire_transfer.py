"""How fast a blob reaches a device through a real broker, and what that takes of its memory.

As a script it is the device: it connects, fetches the blob, and prints what it took as JSON.
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

from edge_runtime.blob import chunk, make_ref
from edge_runtime.ledger import Ledger
from edge_runtime.mailbox import DeviceMailbox, ServerMailbox
from edge_runtime.messages import CHUNK_BYTES, BlobRef, Chunk
from edge_runtime.mqtt import MqttLink
from edge_runtime.transfer import Download

BROKERS = ("mosquitto", "amqtt")
FEDERATION, KIND = "wire", "backbone"
WAIT_S = 60.0


def measure(brokers: list[str], sizes_mib: list[int], repeats: int) -> list[dict[str, Any]]:
    """Per broker and size the median MB/s and the median rise of the receiver's peak, MiB."""
    from broker_server.broker import open_broker  # not in the device's memory

    rows = []
    for kind in brokers:
        with (
            tempfile.TemporaryDirectory() as folder,
            open_broker(kind, None, Path(folder)) as broker,
        ):
            link = MqttLink(broker.host, broker.port, "wire-server")
            mailbox = ServerMailbox(link, FEDERATION, Ledger())
            for mib in sizes_mib:
                blobs = (np.random.default_rng(seed).bytes(mib << 20) for seed in range(repeats))
                found = [_transfer(mailbox, blob, broker.host, broker.port) for blob in blobs]
                medians = {key: statistics.median(f[key] for f in found) for key in found[0]}
                rows.append({"broker": kind, "mib": mib, **medians})
            link.close()
    return rows


def _transfer(mailbox: ServerMailbox, data: bytes, host: str, port: int) -> dict[str, float]:
    """One blob from this process to another; retained, as a round's blobs are."""
    ref = make_ref(data)
    indexes = range(ref.chunks(CHUNK_BYTES))
    for index in indexes:
        while not mailbox.link.has_room():
            time.sleep(0.001)
        part = chunk(ref.digest, data, index, CHUNK_BYTES)
        mailbox.offer(ref.digest, KIND, index, part.data, retain=True)
    if not mailbox.link.flush(WAIT_S):
        sys.exit("the broker does not take the blob")
    command = [sys.executable, __file__, host, str(port), ref.digest.hex(), str(ref.size_bytes)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    for index in indexes:
        mailbox.withdraw(ref.digest, index)
    mailbox.link.flush(WAIT_S)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def receive(host: str, port: int, ref: BlobRef) -> dict[str, float]:
    """Fetch the blob as a device does; what it took."""
    link = MqttLink(host, port, "wire-device")
    mailbox = DeviceMailbox(link, FEDERATION, "device", Ledger())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    resting_kib, began_s = _memory_kib("VmRSS"), time.perf_counter()
    download = Download([ref], CHUNK_BYTES)
    arrived: list[int] = []
    while not download.complete:
        for want in download.wants(time.monotonic()).all:
            mailbox.unlisten(ref.digest, arrived)
            arrived.clear()
            mailbox.listen(ref.digest, KIND, range(want.first, want.first + want.count))
        message = mailbox.receive(WAIT_S)
        if not isinstance(message, Chunk):
            sys.exit("the blob does not arrive")
        download.accept(message, time.monotonic())
        arrived.append(message.index)
    took_s = time.perf_counter() - began_s
    peak_kib = _memory_kib("VmHWM")
    link.close()
    return {
        "mb_per_s": ref.size_bytes / took_s / 1e6,
        "peak_rise_mib": (peak_kib - resting_kib) / 1024,
    }


def _memory_kib(key: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))


if __name__ == "__main__":
    _host, _port, _digest, _size_bytes = sys.argv[1:]
    print(json.dumps(receive(_host, int(_port), BlobRef(bytes.fromhex(_digest), int(_size_bytes)))))
