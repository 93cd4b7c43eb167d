"""Partial files give back what was written, and nothing else, whatever happened to them."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.partial_files import MAX_AGE_S, MIN_BYTES, PartialFile, PartialFiles
from edge_runtime.protocol.blob import chunk, make_ref
from edge_runtime.protocol.messages import BlobRef
from edge_runtime.protocol.partial_blob import PartialBlob
from edge_runtime.unfinished import Unfinished

SMALL = 1 << 16
NOW_S = time.time()


def blob(seed: int = 0, size_bytes: int = MIN_BYTES + 5) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def files_in(folder: Path, capacity_bytes: int = 1 << 24) -> PartialFiles:
    return PartialFiles(folder, capacity_bytes, clock=lambda: NOW_S)


def opened(files: PartialFiles, data: bytes) -> PartialFile:
    file = files.open(make_ref(data), SMALL)
    assert file is not None
    return file


def write(file: PartialFile, data: bytes, *indexes: int) -> None:
    for index in indexes:
        file.write(index, chunk(make_ref(data).digest, data, index, SMALL).data)


def date(folder: Path, data: bytes, age_s: float) -> None:
    (path,) = folder.glob(f"{make_ref(data).digest.hex()}*")
    os.utime(path, (NOW_S - age_s, NOW_S - age_s))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 3),
    size_bytes=st.integers(1, 100),
    order=st.lists(st.integers(0, 9), unique=True),
    cut=st.integers(0, 200),
    flips=st.lists(st.integers(0, 200), max_size=2),
)
def test_only_good_chunks_come_back(
    seed: int, size_bytes: int, order: list[int], cut: int, flips: list[int]
) -> None:
    """Also of a file that was cut or damaged."""
    data = blob(seed, size_bytes)
    ref = make_ref(data)
    chunks = {i: data[i * 10 : (i + 1) * 10] for i in range(ref.chunks(10))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        file = PartialFile(path, ref, 10)
        assert not list(file.chunks()) and file.whole() is None
        written = {index: chunks[index] for index in order if index in chunks}
        for index, piece in written.items():
            file.write(index, piece)
        assert dict(PartialFile(path, ref, 10).chunks()) == written
        assert file.whole() == (data if written == chunks else None)
        if written:
            spoilt = bytearray(path.read_bytes()[: len(path.read_bytes()) - cut])
            for flip in flips:
                if flip < len(spoilt):
                    spoilt[flip] ^= 1
            path.write_bytes(spoilt)
            assert dict(file.chunks()).items() <= written.items()
            assert file.whole() in (None, data)
        file.remove()
        assert not path.exists()


def test_small_blobs_have_no_file(tmp_path: Path) -> None:
    assert files_in(tmp_path).open(make_ref(blob(0, MIN_BYTES - 1)), SMALL) is None
    assert files_in(tmp_path).open(make_ref(blob(0, MIN_BYTES)), SMALL) is not None


def test_the_oldest_of_others_make_room(tmp_path: Path) -> None:
    blobs = [blob(seed) for seed in range(4)]
    for age_s, data in zip([30.0, 10.0, 20.0], blobs, strict=False):
        write(opened(files_in(tmp_path), data), data, 16)
        date(tmp_path, data, age_s)
    files = files_in(tmp_path, 3 * (MIN_BYTES + 500))
    write(opened(files, blobs[3]), blobs[3], 0)
    names = {path.name.partition(".")[0] for path in tmp_path.iterdir()}
    assert names == {make_ref(blobs[seed]).digest.hex() for seed in (1, 2, 3)}
    assert files.open(make_ref(blobs[1]), SMALL) is not None
    assert files.open(make_ref(blobs[2]), SMALL) is not None
    assert files.open(make_ref(blobs[0]), SMALL) is None  # all of the room is in use
    assert len(list(opened(files, blobs[3]).chunks())) == 1


def test_what_is_a_day_old_goes(tmp_path: Path) -> None:
    old, new = blob(1), blob(2)
    for data, age_s in ((old, MAX_AGE_S + 1), (new, MAX_AGE_S - 1)):
        write(opened(files_in(tmp_path), data), data, 0)
        date(tmp_path, data, age_s)
    files_in(tmp_path)
    assert [path.name.partition(".")[0] for path in tmp_path.iterdir()] == [
        make_ref(new).digest.hex()
    ]


def test_only_what_this_process_used_is_removed(tmp_path: Path) -> None:
    mine, wanted, foreign = blob(1), blob(2), blob(3)
    write(opened(files_in(tmp_path), foreign), foreign, 0)
    files = files_in(tmp_path)
    for data in (mine, wanted):
        write(opened(files, data), data, 0)
    files.keep({make_ref(wanted).digest})
    left = {path.name.partition(".")[0] for path in tmp_path.iterdir()}
    assert left == {make_ref(data).digest.hex() for data in (wanted, foreign)}


def test_a_folder_that_cannot_be_used_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    files = files_in(tmp_path / "file")
    assert "cannot be kept in" in caplog.text
    data = blob()
    file = files.open(make_ref(data), SMALL)
    if file is not None:
        caplog.clear()
        write(file, data, 0, 1)
        assert caplog.text.count("cannot be kept in") == 1
        assert not list(file.chunks())


def fetched(ref: BlobRef, data: bytes, partial: PartialBlob, indexes: range) -> None:
    for index in indexes:
        partial.write(index, chunk(ref.digest, data, index, SMALL).data)


def test_what_has_come_goes_from_one_to_the_next(tmp_path: Path) -> None:
    """In memory and, in the next life, from the disk."""
    data, whole = blob(1), blob(2)
    ref = make_ref(data)
    for files in (None, files_in(tmp_path)):
        kept = Unfinished(files)
        partial = kept.take(ref, SMALL)
        fetched(ref, data, partial, range(3, 9))
        kept.put([partial, PartialBlob(make_ref(whole), SMALL)], {make_ref(whole).digest: whole})
        kept.keep({ref.digest, make_ref(whole).digest})
        assert kept.take(ref, SMALL) is partial
        assert kept.take(ref, 2 * SMALL).missing_bytes == len(data)  # cut otherwise
        assert kept.take_whole(make_ref(whole), SMALL) == whole
        assert kept.take_whole(make_ref(whole), SMALL) is None
    again = Unfinished(files_in(tmp_path))
    assert again.take_whole(ref, SMALL) is None
    partial = again.take(ref, SMALL)
    assert [i for i, here in enumerate(partial.arrived) if here] == list(range(3, 9))
    fetched(ref, data, partial, range(0, 3))
    fetched(ref, data, partial, range(9, partial.chunks))
    assert partial.finish() == data
    assert Unfinished(files_in(tmp_path)).take_whole(ref, SMALL) == data
    again.keep([])
    assert Unfinished(files_in(tmp_path)).take_whole(ref, SMALL) is None


def test_chunks_that_are_not_the_blob_are_not_kept(tmp_path: Path) -> None:
    data = blob(1)
    wrong = BlobRef(b"?" * 16, len(data))
    partial = Unfinished(files_in(tmp_path)).take(wrong, SMALL)
    for index in range(partial.chunks):
        partial.write(index, chunk(make_ref(data).digest, data, index, SMALL).data)
    again = Unfinished(files_in(tmp_path))
    assert again.take_whole(wrong, SMALL) is None
    assert again.take(wrong, SMALL).missing_bytes == len(data)
    assert not list(tmp_path.iterdir())
