"""What a device holds, and what it tells of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.contents import Contents
from edge_runtime.errors import FlexmoeError
from edge_runtime.program_cache import ProgramCache
from edge_runtime.protocol.blob import BlobShelf, digest
from edge_runtime.protocol.messages import MAX_HELD


def put(contents: Contents, kind: str, data: bytes) -> None:
    contents.put(kind, digest(data), data)


def test_of_each_part_there_is_one_version() -> None:
    shelf = BlobShelf(1000)
    contents = Contents(shelf)
    for data in (b"one", b"two"):
        put(contents, "backbone", data)
        put(contents, "expert:1", data + b" expert")
        put(contents, "program", data + b" program")
    names = {b"two", b"two expert", b"one program", b"two program"}
    assert {shelf.get(name) for name in shelf.names} == names
    put(contents, "expert:1", b"two expert")
    assert digest(b"two expert") in contents


def test_a_content_of_two_parts_stays_until_both_have_another() -> None:
    contents = Contents(BlobShelf(1000))
    put(contents, "expert:1", b"same")
    contents.use("expert:2", digest(b"same"))
    put(contents, "expert:1", b"other")
    assert digest(b"same") in contents
    put(contents, "expert:2", b"third")
    assert digest(b"same") not in contents and digest(b"other") in contents


def test_what_is_replaced_is_not_told_and_what_left_is_told_once() -> None:
    contents = Contents(BlobShelf(10))
    put(contents, "expert:1", b"1111")
    put(contents, "expert:2", b"2222")
    assert contents.tell_held() == [digest(b"1111"), digest(b"2222")]
    put(contents, "expert:2", b"2223")
    assert contents.tell_dropped([digest(b"2223")]) == []
    put(contents, "expert:3", b"3333")  # no room for three
    assert contents.tell_dropped([digest(b"3333")]) == [digest(b"1111")]
    assert contents.tell_dropped([]) == []
    assert contents.tell_held() == [digest(b"2223"), digest(b"3333")]


def test_what_the_server_expects_and_is_gone_is_told() -> None:
    contents = Contents(BlobShelf(10))
    put(contents, "backbone", b"1111")
    contents.drop(digest(b"1111"))
    contents.drop(digest(b"1111"))
    assert contents.tell_dropped([digest(b"1111")]) == [digest(b"1111")]


def test_programs_come_back_from_the_disk(tmp_path: Path) -> None:
    contents = Contents(BlobShelf(10), ProgramCache(tmp_path))
    put(contents, "program", b"program")
    put(contents, "backbone", b"weights")  # takes its room
    assert contents.tell_dropped([]) == [] and digest(b"program") in contents
    assert contents.get(digest(b"program")) == b"program"
    again = Contents(BlobShelf(10), ProgramCache(tmp_path))
    assert again.tell_held() == [digest(b"program")]
    assert again.get(digest(b"weights")) is None


def test_of_too_many_the_latest_are_told() -> None:
    contents = Contents(BlobShelf(1 << 20))
    names = []
    for number in range(MAX_HELD + 5):
        put(contents, f"expert:{number}", b"%d" % number)
        names.append(digest(b"%d" % number))
    assert contents.tell_held() == names[5:]


def test_what_is_in_use_does_not_leave() -> None:
    contents = Contents(BlobShelf(10))
    put(contents, "expert:1", b"1111")
    with contents.hold([digest(b"1111")]):
        put(contents, "expert:2", b"2222")
        put(contents, "expert:3", b"3333")
        assert digest(b"1111") in contents and digest(b"2222") not in contents
    assert contents.capacity_bytes == 10


def test_a_new_version_without_room_leaves_none_and_the_server_is_told() -> None:
    contents = Contents(BlobShelf(10))
    put(contents, "expert:1", b"1111")
    contents.tell_held()
    with pytest.raises(FlexmoeError):
        put(contents, "expert:1", bytes(11))
    assert contents.tell_dropped([]) == [digest(b"1111")]
    put(contents, "expert:1", b"1112")
    assert contents.tell_held() == [digest(b"1112")]
