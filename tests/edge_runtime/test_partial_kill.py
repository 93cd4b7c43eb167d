"""A device that is killed in the middle of a download goes on where it was."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from broker_server.brokers.broker import Broker
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.messages import CHUNK_BYTES, pack
from edge_runtime.protocol.transfer import WINDOW
from edge_runtime.transport.mqtt import MqttLink
from tests.edge_runtime.stage import Stage, make_model

ROOT = Path(__file__).resolve().parents[2]
BLOB_BYTES = 16 << 20
WAIT_S = 30.0

# Says each chunk that it took in, and goes on when told to, or when nobody can tell it any more.
DEVICE = """
import sys, time
from pathlib import Path
from edge_runtime.protocol.blob import BlobShelf
from edge_runtime.contents import Contents
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import DeviceMailbox
from edge_runtime.protocol.messages import Welcome, unpack
from edge_runtime.transport.mqtt import MqttLink
from edge_runtime.partial_files import PartialFiles
from edge_runtime.supply import Supply
from edge_runtime.unfinished import Unfinished

host, port, name, work, folder = sys.argv[1:]
link = MqttLink(host, int(port), name)
mailbox = DeviceMailbox(link, name, "dev", Ledger())
files = PartialFiles(Path(folder), 1 << 26)
contents = Contents(BlobShelf(1 << 26), None, Unfinished(files))
welcome = Welcome("s", 256 * 1024, True)
work = unpack(Path(work).read_bytes())
supply = Supply(work, welcome, contents, mailbox, time.monotonic)
supply.ask()
while not supply.complete:
    part = mailbox.receive(min(0.5, supply.next_ask_s()))
    if part is not None:
        supply.accept(part)
        print(part.digest.hex(), part.index, flush=True)
        sys.stdin.readline()
    supply.ask()
supply.close()
assert contents.get(work.backbone.digest) is not None
print("complete", link.received_bytes, flush=True)
link.close()
"""


def test_a_killed_device_fetches_only_what_it_lacks(
    running_broker: Callable[[str], Broker], unique: str, tmp_path: Path
) -> None:
    broker = running_broker("mosquitto")
    stage = Stage(shelf_bytes=1 << 26)
    assign = stage.make_assign(make_model(0, stage.layout))
    values = np.random.default_rng(0).normal(size=BLOB_BYTES // 4).astype(np.float32)
    assign = dataclasses.replace(assign, backbone=stage.part("backbone", {"x": values}))
    (tmp_path / "work").write_bytes(pack(assign))
    (big,) = assign.backbone.frames
    chunks = big.chunks(CHUNK_BYTES)
    cache = tmp_path / "cache"
    where = [broker.host, str(broker.port), unique, str(tmp_path / "work"), str(cache)]

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DEVICE, *where]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def indexes(lines: list[str]) -> list[int]:
        """The chunks of the big blob in what a device says."""
        found = [line.split() for line in lines if line.startswith(big.digest.hex())]
        return [int(index) for _, index in found]

    with closing(MqttLink(broker.host, broker.port, f"{unique}-server")) as link:
        server = ServerMailbox(link, unique, Ledger())
        for name, data in stage.frames.items():
            for index in range(-(-len(data) // CHUNK_BYTES)):
                piece = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                server.offer(name, stage.kinds[name], index, piece, retain=True)
        assert link.flush(WAIT_S)
        with start() as victim:
            assert victim.stdin is not None and victim.stdout is not None
            victim.stdin.write("\n" * 32)
            victim.stdin.flush()
            before = [victim.stdout.readline() for _ in range(28)]
            victim.kill()  # while it takes in the next ones
            before += victim.stdout.readlines()
        came = indexes(before)
        assert 16 <= len(came) < chunks
        with start() as heir:
            after, _ = heir.communicate(timeout=WAIT_S)
        assert heir.returncode == 0
        again = indexes(after.splitlines())
        assert set(came).isdisjoint(again)
        assert len(again) >= chunks - len(came) - WINDOW
        assert set(range(chunks)) - {*came, *again} <= {max(came) + 1}  # taken in, and not said
        *_, last = after.split()
        # What was on its way when the device was killed, a window at most, comes again.
        assert int(last) < (chunks - len(came)) * (CHUNK_BYTES + 100) + 100_000
        assert not list(cache.iterdir())
        for name, data in stage.frames.items():
            for index in range(-(-len(data) // CHUNK_BYTES)):
                server.withdraw(name, index)
        assert link.flush(WAIT_S)
