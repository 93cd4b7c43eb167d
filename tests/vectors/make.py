"""Makes the test vectors, and the dumps in docs/protocol.md: ``python -m tests.vectors.make``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.artifact import pack_program
from edge_runtime.codec import decode, encode, parse_coding
from edge_runtime.compression import own_compressors
from edge_runtime.program_file import seal
from edge_runtime.protocol.blob import chunk, digest, make_ref
from edge_runtime.protocol.messages import pack
from edge_runtime.protocol.topics import all_topic, blob_topic, down_topic, up_topic
from edge_runtime.tensor_blob import Tensors, pack_tensors
from tests.edge_runtime.examples import EXAMPLES, TYPES
from tests.vectors import bad, dump, samples
from tests.vectors.plain_messages import schema

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "protocol.md"
CHUNK_BYTES = 4096
BLOB = bytes(i * 37 % 251 for i in range(10_000))


def main() -> None:
    """Write all files, and put the dumps into the page."""
    made = samples.rounds()
    files: dict[str, Any] = {
        "messages": messages(),
        "tensors": tensors(),
        "topics": topics(),
        "codecs": codecs(),
        "chain": chain(),
        "programs": programs(),
        "update": update(made),
    }
    files["bad"] = bad.cases(files)
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in dumps(files["update"], page).items():
        page = put_dump(page, name, lines)
    PAGE.write_text(page, encoding="utf-8")


def plain(value: Any) -> Any:
    """As JSON takes it: bytes in hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def values(tensors: Tensors) -> dict[str, str]:
    """Float32 values, lower byte first."""
    return {name: value.astype("<f4").tobytes().hex() for name, value in sorted(tensors.items())}


def shapes(tensors: Tensors) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in sorted(tensors.items())}


def messages() -> list[dict[str, Any]]:
    return [
        {
            "type": cls.__name__,
            "number": number,
            "fields": plain(asdict(EXAMPLES[cls])),
            "bytes": pack(EXAMPLES[cls]).hex(),
        }
        for number, cls in enumerate(TYPES)
    ]


def tensors() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "tensors": {
                key: {
                    "dtype": value.dtype.str[1:],
                    "shape": list(value.shape),
                    "data": value.tobytes().hex(),
                }
                for key, value in sorted(content.items())
            },
            "bytes": (data := pack_tensors(content)).hex(),
            "digest": digest(data).hex(),
        }
        for name, content in samples.TENSORS.items()
    ]


def topics() -> dict[str, Any]:
    federation, ref = samples.FEDERATION, make_ref(BLOB)
    return {
        "federation": federation,
        "client": samples.CLIENT,
        "up": up_topic(federation, samples.CLIENT),
        "down": down_topic(federation, samples.CLIENT),
        "all": all_topic(federation),
        "digests": {text: digest(text.encode()).hex() for text in ("a", "flexmoe")},
        "blob": "byte i is i * 37 % 251",
        "size_bytes": ref.size_bytes,
        "digest": ref.digest.hex(),
        "chunk_bytes": CHUNK_BYTES,
        "chunks": [
            {
                "topic": blob_topic(federation, ref.digest, index),
                "size_bytes": len(data),
                "digest": digest(data).hex(),
            }
            for index in range(ref.chunks(CHUNK_BYTES))
            for data in [chunk(ref.digest, BLOB, index, CHUNK_BYTES).data]
        ],
    }


def codecs() -> list[dict[str, Any]]:
    found = []
    for name, spec, content, described in samples.CODED:
        blob = encode(content, parse_coding(spec), np.random.default_rng(0), described=described)
        like = {key: value.shape for key, value in content.items()}
        decoded = decode(blob, like, 1 << 20)
        # What is not rounded at random can be made again.
        again = {"values": values(content)} if spec.startswith(("fp16", "topk")) else {}
        found.append(
            {
                "name": name,
                "spec": spec,
                "described": described,
                "shapes": shapes(content),
                **again,
                "blob": blob.hex(),
                "decoded": values(decoded),
            }
        )
    return found


def chain() -> dict[str, Any]:
    """A whole frame, and deltas after it, one of them to -0.0."""
    start = {**samples.SMALL, "zeros": np.array([-0.0, 0.0, -0.0], np.float32)}
    like = {name: value.shape for name, value in start.items()}
    whole = encode(start, parse_coding("raw"), np.random.default_rng(0), described=True)
    held = decode(whole, None, 1 << 20)
    steps = [(whole, held)]
    for seed, spec in enumerate(["topk(0.3,4)", "int8", "raw+zlib", "int4"], start=1):
        source = np.random.default_rng(seed)
        change = {
            name: (0.1 * source.normal(size=shape)).astype(np.float32)
            for name, shape in like.items()
        }
        change["zeros"] = np.array([0.0, -0.0, -0.0], np.float32)
        frame = encode(change, parse_coding(spec), source)
        delta = decode(frame, like, 1 << 20)
        held = {name: value + delta[name] for name, value in held.items()}
        steps.append((frame, held))
    return {
        "frames": [frame.hex() for frame, _ in steps],
        "frame_digests": [digest(frame).hex() for frame, _ in steps],
        "content_digests": [digest(pack_tensors(content)).hex() for _, content in steps],
        "contents": [pack_tensors(content).hex() for _, content in steps],
    }


def programs() -> dict[str, Any]:
    file = seal(b"\x1c\0\0\0ET12" + b"not a program that runs, but sealed like one; " * 4)
    compressors = ["", *own_compressors()]
    return {
        "file": file.hex(),
        "digest": digest(file).hex(),
        "frames": {name or "none": pack_program(file, name).hex() for name in compressors},
    }


def update(made: list[samples.Round]) -> dict[str, Any]:
    found, lost = [], dict[str, Tensors]()
    for one in made:
        parts = []
        for kind, start, end, blob in samples.sections(one):
            decoded = decode(blob, {name: v.shape for name, v in start.items()}, 1 << 20)
            rest = lost.get(kind, {name: np.zeros_like(v) for name, v in start.items()})
            lost[kind] = {n: ((end[n] - start[n]) + rest[n]) - decoded[n] for n in start}
            parts.append(
                {
                    "kind": kind,
                    "shapes": shapes(start),
                    "before": values(start),
                    "after": values(end),
                    "residual_before": values(rest),
                    "blob": blob.hex(),
                    "decoded": values(decoded),
                    "residual_after": values(lost[kind]),
                }
            )
        found.append(
            {
                "assign": pack(one.assign).hex(),
                "report": pack(one.report).hex(),
                "update": one.update.data.hex(),
                "sections": parts,
            }
        )
    kind, expert = samples.first_expert(made[0])
    frame = encode(expert, parse_coding("int8"), np.random.default_rng(0), described=True)
    return {"rounds": found, "frame_kind": kind, "frame": frame.hex()}


def dumps(update: dict[str, Any], page: str) -> dict[str, list[str]]:
    """The dumps of the page by name, from `update.json` and the page's own tables."""
    first = update["rounds"][0]
    report = dump.message(bytes.fromhex(first["report"]), schema(page))
    sections: list[str] = []
    offset = 0
    for section in first["sections"]:
        blob = bytes.fromhex(section["blob"])
        like = {name: tuple(shape) for name, shape in section["shapes"].items()}
        sections += [*([""] if sections else []), *dump.coded(blob, like, section["kind"], offset)]
        offset += len(blob)
    frame = dump.coded(bytes.fromhex(update["frame"]), None, update["frame_kind"])
    return {"report": report, "update": sections, "frame": frame}


def put_dump(page: str, name: str, lines: list[str]) -> str:
    """The page with this dump between its marks."""
    block = "\n".join(["```", *lines, "```"])
    marks = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.S)
    return marks.sub(lambda found: f"{found[1]}{block}\n{found[2]}", page)


if __name__ == "__main__":
    main()
