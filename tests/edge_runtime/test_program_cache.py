"""Programs on a device's disk: bounded, checked, and never in the way."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.program_cache import ProgramCache, default_folder
from edge_runtime.protocol.blob import digest


def put(cache: ProgramCache, data: bytes) -> bytes:
    name = digest(data)
    cache.put(name, data)
    return name


def test_what_is_kept_survives_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    name = put(ProgramCache(folder), b"program")
    again = ProgramCache(folder)
    assert again.names == [name] and name in again and again.get(name) == b"program"
    assert again.get(digest(b"other")) is None
    assert [path.name for path in folder.iterdir()] == [name.hex()]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_the_least_recently_used_leave(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]]
) -> None:
    """Against a list in the order of use."""
    cache = ProgramCache(tmp_path_factory.mktemp("cache"), 1000)
    model: list[bytes] = []
    contents = {digest(data): data for data in (bytes([n]) * (100 + 30 * n) for n in range(10))}
    names = list(contents)
    for reads, number in steps:
        name = names[number]
        if reads:
            assert cache.get(name) == (contents[name] if name in model else None)
            if name in model:
                model = [*(other for other in model if other != name), name]
        elif name not in model:
            cache.put(name, contents[name])
            while sum(len(contents[other]) for other in [*model, name]) > 1000:
                model.pop(0)
            model.append(name)
        assert cache.names == model


def test_the_order_of_use_survives_too(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path, 300)
    names = [put(cache, bytes([n]) * 100) for n in range(3)]
    for age, name in enumerate(reversed(names)):
        os.utime(tmp_path / name.hex(), (1000.0 - age, 1000.0 - age))
    again = ProgramCache(tmp_path, 300)
    assert again.names == names
    assert again.get(names[0]) is not None
    last = ProgramCache(tmp_path, 300)
    put(last, b"new" * 10)
    assert names[1] not in last and {names[0], names[2]} <= set(last.names)
    assert len(ProgramCache(tmp_path, 120).names) == 1  # a smaller limit holds at once


def test_a_program_that_is_larger_than_all_is_not_kept(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path, 100)
    small = put(cache, b"small")
    assert put(cache, bytes(101)) not in cache and small in cache


@pytest.mark.parametrize("damage", [b"", b"progran", b"program!"])
def test_a_damaged_file_is_removed(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ProgramCache(tmp_path)
    name = put(cache, b"program")
    (tmp_path / name.hex()).write_bytes(damage)
    again = ProgramCache(tmp_path)
    assert again.get(name) is None and name not in again and "damaged" in caplog.text
    assert list(tmp_path.iterdir()) == []
    again.put(name, b"program")
    assert again.get(name) == b"program"


def test_a_file_that_another_process_removed_is_not_there(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path, 100)
    names = [put(cache, bytes([n]) * 40) for n in range(2)]
    for name in names:
        (tmp_path / name.hex()).unlink()
    assert cache.get(names[0]) is None and cache.names == names[1:]
    put(cache, bytes(90))  # makes room by what is gone already
    assert len(cache.names) == 1


def test_what_is_none_of_its_files_stays_and_does_not_count(tmp_path: Path) -> None:
    for name in ("README", "ab" * 15, "AB" * 16, "ab" * 17):
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ("cd" * 16)).mkdir()
    half, coming = (tmp_path / f"{'ef' * 16}.{pid}.part" for pid in (1, 2))
    for path in (half, coming):
        path.write_bytes(b"half a prog")
    os.utime(half, (0, 0))
    assert ProgramCache(tmp_path).names == []
    assert coming.exists()  # another process writes it
    assert len(list(tmp_path.iterdir())) == 6  # what a killed process left is gone


def test_a_folder_that_cannot_be_used_is_told_and_borne(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        cache = ProgramCache(tmp_path / "file" / "folder")
        assert "programs cannot be kept in" in caplog.text
        name = put(cache, b"program")
    assert name not in cache and cache.get(name) is None and cache.names == []


def test_where_programs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FLEXMOE_CACHE", str(tmp_path / "own"))
    assert default_folder("fed", "dev") == tmp_path / "own" / "devices" / "fed" / "dev"
    monkeypatch.delenv("FLEXMOE_CACHE")
    assert default_folder("fed", "dev") == tmp_path / "xdg/flexmoe/devices/fed/dev"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder("fed", "dev") == tmp_path / ".cache/flexmoe/devices/fed/dev"
