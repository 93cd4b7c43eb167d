"""Program files: what was sealed comes back; anything else is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ProgramError
from edge_runtime.program_file import IDENTIFIER, SEAL_BYTES, seal, unseal

PROGRAM = b"\x40\x00\x00\x00" + IDENTIFIER + bytes(range(200))
FILE = seal(PROGRAM)


@given(st.binary(max_size=300))
def test_round_trip(content: bytes) -> None:
    program = b"root" + IDENTIFIER + content
    assert bytes(unseal(seal(program))) == program
    assert len(seal(program)) == len(program) + SEAL_BYTES


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_seen(at: int, change: int) -> None:
    damaged = bytearray(FILE)
    damaged[at] ^= change
    with pytest.raises(ProgramError):
        unseal(bytes(damaged))


@given(st.integers(0, len(FILE) - 1))
def test_any_missing_end_is_seen(length: int) -> None:
    with pytest.raises(ProgramError):
        unseal(FILE[:length])


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "not a flexmoe program"),
        (b"hello\n" * 100, "not a flexmoe program"),
        (PROGRAM, "has no seal: it was cut short, or not exported by flexmoe"),
        (FILE[:-1], "has no seal: it was cut short"),
        (FILE + b"\0", "has no seal"),
        (b"x" + FILE[1:], "is damaged: its bytes do not fit its seal"),
        (FILE[:-1] + bytes([FILE[-1] ^ 1]), "is damaged"),
        (
            FILE[: len(PROGRAM) + 4] + b"\x07\0\0\0" + FILE[-32:],
            "file has version 7, this runtime reads version 1",
        ),
        (seal(b"rootET13" + bytes(60)), r"format b'ET13', this runtime reads b'ET12'"),
        (seal(b"\x89PNG...."), r"this runtime reads b'ET12'"),
    ],
)
def test_what_is_wrong_is_named(file: bytes, says: str) -> None:
    with pytest.raises(ProgramError, match=says) as caught:
        unseal(file)
    assert "\n" not in str(caught.value)
