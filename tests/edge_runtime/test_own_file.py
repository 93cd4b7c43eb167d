"""A device's own file: kept whole, read as it was written or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.own_file import OwnFile


def as_it_is(kept: Any) -> Any:
    return kept


def test_it_gives_back_what_it_kept_of_a_session(tmp_path: Path) -> None:
    file = OwnFile(tmp_path / "a" / "b.gate", "rows")
    assert file.load("s", as_it_is) is None
    file.save("s", [["kind", 1, b"bytes"]])
    assert file.load("s", as_it_is) == [["kind", 1, b"bytes"]]
    assert file.load("t", as_it_is) is None
    file.save("t", b"other")
    assert file.load("s", as_it_is) is None and file.load("t", as_it_is) == b"other"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.gate"]


def test_without_a_path_it_keeps_nothing() -> None:
    file = OwnFile(None, "rows")
    file.save("s", b"kept")
    assert file.load("s", as_it_is) is None


@given(st.data())
def test_any_damage_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("own") / "file"
    file = OwnFile(path, "rows")
    file.save("session", [b"some bytes", 7])
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(whole)))])
    assert file.load("session", as_it_is) is None


def test_what_cannot_be_understood_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    OwnFile(path, "rows").save("s", b"kept")
    assert OwnFile(path, "rows").load("s", lambda kept: kept["rows"]) is None
    assert f"the rows in {path} cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    OwnFile(tmp_path / "file" / "own", "rows").save("s", b"kept")
    assert "the rows cannot be kept in" in caplog.text
