"""docs/protocol.md against our code: its tables, its limits, its dumps."""

from __future__ import annotations

import re
from typing import Any, get_args, get_origin, get_type_hints

from broker_server import roster
from broker_server.books import accounts
from edge_runtime import downlink, greeting, supply, tensor_blob, work
from edge_runtime.protocol import message_parts, messages, transfer
from edge_runtime.protocol.messages import Artifact, BlobRef
from tests.vectors import make
from tests.vectors.load import PAGE, SCHEMA, VECTORS


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in make.FOLDER.glob("*.json")) < 100_000


def kind_of(hint: Any) -> str:
    """A field's type as the page calls it."""
    if get_origin(hint) is list:
        return f"list of {kind_of(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"map of {' to '.join(map(kind_of, get_args(hint)))}"
    return "text" if hint is str else str(hint.__name__)


def test_the_tables_of_messages() -> None:
    types = get_args(messages.Message)
    parts = (BlobRef, Artifact, messages.Want, messages.Moved)
    numbers = {**{cls: number for number, cls in enumerate(types)}, **dict.fromkeys(parts, -1)}
    assert {
        cls.__name__: (
            number,
            [(name, kind_of(hint)) for name, hint in get_type_hints(cls).items()],
        )
        for cls, number in numbers.items()
    } == {name: (number, list(fields)) for name, (number, fields) in SCHEMA.items()}
    assert messages.VERSION == 4 and "**version 4**" in PAGE


def test_the_table_of_limits() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", PAGE, flags=re.M)
    device = (transfer, supply, downlink, work, greeting)
    rooms = (message_parts, tensor_blob, *device, roster, accounts)
    ours = {name: value for room in rooms for name, value in vars(room).items()}
    assert rows and {name: int(value) for name, value in rows} == {
        name: ours[name] for name, _ in rows
    }
    assert {name for name, _ in rows} >= set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", PAGE))


def test_the_dumps() -> None:
    for name, lines in make.dumps(VECTORS["update"], PAGE).items():
        assert len(lines) > 10
        assert make.put_dump(PAGE, name, lines) == PAGE, "run: python -m tests.vectors.make"
