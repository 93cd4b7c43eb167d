"""The test vectors against our code, and against a reader made from docs/protocol.md alone.

The plain readers know nothing of our code. Where both read the same, the page says enough.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from edge_runtime.artifact import build_part, build_program, pack_program
from edge_runtime.codec import decode, encode, parse_coding
from edge_runtime.compression import own_compressors
from edge_runtime.errors import FlexmoeError
from edge_runtime.parts import GATE, ModelParts, Tensors
from edge_runtime.program_file import unseal
from edge_runtime.protocol import messages
from edge_runtime.protocol.blob import chunk, digest
from edge_runtime.protocol.messages import Artifact, Assign, BlobRef, Report, pack, unpack
from edge_runtime.protocol.topics import all_topic, blob_topic, down_topic, up_topic
from edge_runtime.residual import Residuals
from edge_runtime.tensor_blob import pack_tensors, unpack_tensors
from edge_runtime.update import code_update
from tests.vectors import make, plain_codecs, plain_messages, plain_tensors
from tests.vectors.load import MOST, SCHEMA, VECTORS, ZSTD, floats, in_hex, named, shapes_of


def to_plain(tensors: Tensors) -> dict[str, plain_tensors.Tensor]:
    return plain_tensors.read_floats(pack_tensors(tensors))


def skip_without_zstd(blob: bytes) -> None:
    if blob[0] & 3 == 2 and not ZSTD:
        pytest.skip("zstandard is not installed")


# --- messages and topics -----------------------------------------------------------------------


@named(VECTORS["messages"], "type")
def test_messages(case: dict[str, Any]) -> None:
    payload = bytes.fromhex(case["bytes"])
    message = unpack(payload)
    assert type(message).__name__ == case["type"]
    assert make.plain(dataclasses.asdict(message)) == case["fields"]
    assert pack(message) == payload
    name, fields = plain_messages.read_message(payload, SCHEMA)
    assert (name, make.plain(fields)) == (case["type"], case["fields"])
    assert SCHEMA[name][0] == case["number"]


def test_every_message_has_a_vector() -> None:
    assert [case["type"] for case in VECTORS["messages"]] == [
        cls.__name__ for cls in get_args(messages.Message)
    ]


def test_topics() -> None:
    case = VECTORS["topics"]
    federation, client = case["federation"], case["client"]
    assert [case["up"], case["down"], case["all"]] == [
        up_topic(federation, client),
        down_topic(federation, client),
        all_topic(federation),
    ]
    for text, name in case["digests"].items():
        assert digest(text.encode()).hex() == plain_messages.digest(text.encode()).hex() == name
    name, size = bytes.fromhex(case["digest"]), case["chunk_bytes"]
    assert digest(make.BLOB) == name and len(make.BLOB) == case["size_bytes"]
    for index, part in enumerate(case["chunks"]):
        assert blob_topic(federation, name, index) == part["topic"]
        assert plain_messages.chunk_topic(federation, name, index) == part["topic"]
        data = chunk(name, make.BLOB, index, size).data
        assert (len(data), digest(data).hex()) == (part["size_bytes"], part["digest"])
    assert sum(part["size_bytes"] for part in case["chunks"]) == len(make.BLOB)


# --- contents and coded blobs ------------------------------------------------------------------


@named(VECTORS["tensors"], "name")
def test_raw_tensors(case: dict[str, Any]) -> None:
    data, wanted = bytes.fromhex(case["bytes"]), case["tensors"]
    tensors = unpack_tensors(data)
    assert wanted == {
        name: {
            "dtype": value.dtype.str[1:],
            "shape": list(value.shape),
            "data": value.tobytes().hex(),
        }
        for name, value in tensors.items()
    }
    assert pack_tensors(tensors) == data
    assert digest(data).hex() == plain_messages.digest(data).hex() == case["digest"]
    found = plain_tensors.read_raw(data)
    assert wanted == {
        name: {"dtype": code, "shape": list(shape), "data": values.hex()}
        for name, (code, shape, values) in found.items()
    }
    if all(code == "f4" for code, _, _ in found.values()):
        assert plain_tensors.pack_floats(plain_tensors.read_floats(data)) == data


@named(VECTORS["codecs"], "name")
def test_codecs(case: dict[str, Any]) -> None:
    blob, shapes = bytes.fromhex(case["blob"]), shapes_of(case)
    assert shapes is not None
    skip_without_zstd(blob)
    for like in [shapes, None] if case["described"] else [shapes]:
        ours = decode(blob, like, MOST)
        assert make.values(ours) == case["decoded"]
        assert {name: value.shape for name, value in ours.items()} == shapes
        assert in_hex(plain_codecs.decode(blob, like)) == case["decoded"]
    # Rounding at random, and how far a compressor gets, may differ from one machine to the next.
    if case["spec"] == "raw" or "values" in case:
        tensors = floats(case.get("values", case["decoded"]), shapes)
        coding, rng = parse_coding(case["spec"]), np.random.default_rng(1)
        assert encode(tensors, coding, rng, described=case["described"]) == blob


def test_every_codec_has_a_vector() -> None:
    specs = {case["spec"] for case in VECTORS["codecs"]}
    names = {re.split(r"[(+]", spec)[0] for spec in specs}
    assert names == {"raw", "fp16", "int8", "int4", "topk"}
    flags = {bytes.fromhex(case["blob"])[0] & 7 for case in VECTORS["codecs"]}
    assert flags == {0, 1, 2, 4, 6}


def test_frames_lead_to_contents() -> None:
    case = {key: [bytes.fromhex(item) for item in items] for key, items in VECTORS["chain"].items()}
    frames, contents = case["frames"], case["contents"]
    refs = [BlobRef(digest(frame), len(frame)) for frame in frames]
    assert [ref.digest for ref in refs] == case["frame_digests"]
    for i, content in enumerate(contents):
        name = digest(content)
        assert name == case["content_digests"][i] == plain_messages.digest(content)
        artifact = Artifact(name, b"", refs[: i + 1])
        assert build_part(artifact, None, frames[: i + 1]) == content
        assert plain_codecs.build(None, frames[: i + 1]) == content
        base = unpack_tensors(contents[0])
        delta = Artifact(name, digest(contents[0]), refs[1 : i + 1]) if i else artifact
        assert build_part(delta, base, frames[1 : i + 1]) == content
        assert plain_codecs.build(to_plain(base), frames[1 : i + 1]) == content
    # What is added to -0.0 counts, even if it is 0.
    signs = [np.signbit(unpack_tensors(content)["zeros"]).tolist() for content in contents]
    assert signs[0] == [True, False, True] and not signs[1][0]


@pytest.mark.parametrize("compressor", ["none", *own_compressors()])
def test_programs(compressor: str) -> None:
    case = VECTORS["programs"]
    file, frame = bytes.fromhex(case["file"]), bytes.fromhex(case["frames"][compressor])
    assert digest(file).hex() == case["digest"]
    artifact = Artifact(digest(file), b"", [BlobRef(digest(frame), len(frame))])
    assert build_program(artifact, [frame]) == plain_codecs.open_program(frame, MOST) == file
    assert bytes(unseal(file)) == file[:-40]
    assert pack_program(file) == bytes.fromhex(case["frames"]["none"])


# --- updates -----------------------------------------------------------------------------------


def model_of(sections: list[dict[str, Any]], key: str, experts: list[int]) -> ModelParts:
    found = {s["kind"]: floats(s[key], shapes_of(s) or {}) for s in sections}
    rows = found["gate"][GATE]
    gate = np.zeros((max(experts) + 1, rows.shape[1]), np.float32)
    gate[experts] = rows
    return ModelParts(found["backbone"], gate, tuple(found[f"expert:{e}"] for e in experts))


def test_updates_with_error_feedback() -> None:
    residuals = Residuals()
    for number, case in enumerate(VECTORS["update"]["rounds"], start=1):
        assign, report = (unpack(bytes.fromhex(case[key])) for key in ("assign", "report"))
        assert isinstance(assign, Assign) and isinstance(report, Report)
        assert assign.round == report.round == number
        data, sections = bytes.fromhex(case["update"]), case["sections"]
        assert report.update == BlobRef(digest(data), len(data))
        assert b"".join(bytes.fromhex(section["blob"]) for section in sections) == data
        residuals.enter(assign.session)
        before, after = (model_of(sections, k, assign.experts) for k in ("before", "after"))
        update = code_update(assign, before, after, residuals)
        assert update.data == data
        assert [size for _, size in update.sections] == report.sections
        assert [kind for kind, _ in update.sections] == [s["kind"] for s in sections]
        for section in sections:
            check_section(section)


def check_section(section: dict[str, Any]) -> None:
    """The page's arithmetic, one rounding an operation, gives the section's residual."""
    shapes = shapes_of(section)
    assert shapes is not None
    decoded = plain_codecs.decode(bytes.fromhex(section["blob"]), shapes)
    assert in_hex(decoded) == section["decoded"]
    for name in shapes:
        after, before, had, rest = (
            np.frombuffer(bytes.fromhex(section[key][name]), "<f4").tolist()
            for key in ("after", "before", "residual_before", "residual_after")
        )
        single = plain_codecs.single
        changes = [single(single(a - b) + r) for a, b, r in zip(after, before, had, strict=True)]
        lost = [single(c - d) for c, d in zip(changes, decoded[name][1], strict=True)]
        assert lost == rest


def test_the_frame_of_the_page() -> None:
    frame = bytes.fromhex(VECTORS["update"]["frame"])
    ours = make.values(decode(frame, None, MOST))
    assert ours == in_hex(plain_codecs.decode(frame))


# --- bad input ---------------------------------------------------------------------------------


@named(VECTORS["bad"], "wrong")
def test_bad_input_is_refused(case: dict[str, Any]) -> None:
    data, shapes = bytes.fromhex(case["bytes"]), shapes_of(case)
    part = Artifact(digest(data[1:]), b"", [BlobRef(digest(data), len(data) or 1)])
    reads: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "message": (
            lambda: unpack(data),
            lambda: plain_messages.read_message(data, SCHEMA),
        ),
        "raw tensors": (lambda: unpack_tensors(data), lambda: plain_tensors.read_raw(data)),
        "coded blob": (
            lambda: decode(data, shapes, MOST),
            lambda: plain_codecs.decode(data, shapes),
        ),
        "program frame": (
            lambda: unseal(build_program(part, [data])),
            lambda: plain_codecs.open_program(data, MOST),
        ),
    }
    ours, plain = reads[case["subject"]]
    with pytest.raises(FlexmoeError):
        ours()
    with pytest.raises(ValueError):
        plain()
