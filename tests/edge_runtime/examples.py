"""One valid example of every message, as long as they are in a common round."""

from __future__ import annotations

from typing import get_args

from edge_runtime.protocol.messages import (
    LAST_WILL,
    Account,
    Artifact,
    Assign,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Hello,
    Holding,
    Message,
    Moved,
    Received,
    Reject,
    Report,
    Rollcall,
    Stop,
    Want,
    Welcome,
)

TYPES: tuple[type[Message], ...] = get_args(Message)
SESSION = "0f1e2d3c4b5a6978"


def name(number: int) -> bytes:
    """A digest: bytes that do not repeat."""
    return bytes((number * 16 + i) * 37 % 251 for i in range(16))


def ref(number: int, size_bytes: int = 1000) -> BlobRef:
    """A blob of this number."""
    return BlobRef(name(number), size_bytes)


def held(number: int) -> Artifact:
    """A content that the device holds already."""
    return Artifact(name(number), b"", [])


def newer(number: int, frames: int = 1) -> Artifact:
    """A content that `frames` delta frames lead to."""
    blobs = [ref(number + 100 + frame, 150_000) for frame in range(frames)]
    return Artifact(name(number), name(number + 50), blobs)


def assign(experts: list[int], frames: int = 1) -> Assign:
    """A round's work in the middle of a run: programs are held, each part has delta frames."""
    return Assign(
        session=SESSION,
        round=117,
        attempt=1,
        counted=116,
        experts=experts,
        training_program=held(1),
        evaluation_program=held(2),
        backbone=newer(3, frames),
        gate=newer(4, frames),
        expert_parts=[newer(10 + expert, frames) for expert in experts],
        local_gate=False,
        epochs=2,
        batch=32,
        optimizer="adamw",
        learning_rate=0.001,
        momentum=0.9,
        weight_decay=0.01,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        clip_norm=1.0,
        seed=2**62 + 11,
        codec="int8+zstd",
    )


def moved(kind: str) -> Moved:
    """What a round moves of one kind."""
    return Moved(kind, 150_000, 150_060, 1, 155_000, 155_060, 2)


def report(experts: list[int]) -> Report:
    """What answers `assign`, with telemetry as devices send it."""
    sections = [120_000, 700, *(52_400 for _ in experts)]
    kinds = ["backbone", "connection", "control", "gate", *(f"expert:{e}" for e in experts)]
    return Report(
        session=SESSION,
        round=117,
        attempt=1,
        experts=experts,
        usage=[1200 for _ in experts],
        loss=[0.731 for _ in experts],
        hits=[900 for _ in experts],
        train_loss=0.731,
        test_hits=180,
        test_samples=240,
        telemetry={
            "wall_s": 14.25, "cpu_s": 11.5, "cpu_share": 0.8, "rss_mib": 61.5, "peak_rss_mib": 72.5,
            "usable_cores": 4.0, "memory_limit_mib": 512.0, "memory_used_mib": 80.5,
            "load_1m": 1.25, "temperature_c": 51.5, "fetch_s": 1.5, "fetch_bytes": 310_000.0,
            "train_s": 12.25, "train_steps": 94.0, "previous_upload_s": 2.5, "train_cpu_s": 11.25,
            "turn_wait_s": 0.5, "host_wait_s": 0.25, "throttled_s": 3.5, "throttled_share": 0.75,
            "memory_peak_mib": 88.5, "memory_kills": 1.0, "disk_read_bytes": 40_960.0,
            "disk_write_bytes": 8_192.0, "interface_up_bytes": 240_000.0,
            "interface_down_bytes": 320_000.0, "interface_drops": 2.0, "cpu_mhz": 1500.0,
            "battery_share": 0.75, "on_battery": 1.0,
        },
        update=BlobRef(name(40), sum(sections)),
        sections=sections,
        account=[moved(kind) for kind in kinds],
        dropped=[name(41)],
    )  # fmt: skip


HELLO = Hello(
    session=SESSION,
    samples=1500,
    test_samples=240,
    shape=[3, 32, 32],
    labels=10,
    trainer="executorch",
    machine="aarch64",
    cores=4.0,
    memory_available_bytes=812_000_000,
    version="0.1.0",
    link="lte",
    board="pi-zero-2w",
    memory_kills=2,
    codecs=["fp16", "int4", "int8", "raw", "topk", "zlib"],
    held=[name(number) for number in range(6)],
)
ASSIGN = assign([1, 4])
REPORT = report([1, 4])
CHUNK = Chunk(name(40), 3, bytes(range(256)) * 2)

EXAMPLES: dict[type[Message], Message] = {
    Rollcall: Rollcall(SESSION),
    Hello: HELLO,
    Welcome: Welcome(SESSION, 64 * 1024, True),
    Reject: Reject(SESSION, "speaks version 3 of the protocol; upgrade it to 4"),
    Assign: ASSIGN,
    Holding: Holding(SESSION, 117, 1, [name(3), name(4)]),
    Fetch: Fetch([Want(name(3), 0, 3), Want(name(4), 7, 1)]),
    Chunk: CHUNK,
    Report: REPORT,
    Failed: Failed(SESSION, 117, 1, "the work needs more memory than there is", 2_000_000_000),
    Received: Received(SESSION, 117, 1),
    Gone: Gone(LAST_WILL),
    Stop: Stop(SESSION, "the run is over"),
    Account: Account(SESSION, [moved("control"), moved("connection")]),
}
assert EXAMPLES.keys() == set(TYPES)
