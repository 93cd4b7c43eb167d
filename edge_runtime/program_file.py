"""Program files: an ExecuTorch program (`.pte`) and a seal after it.

The seal is ``MAGIC``, a version, and the SHA-256 of all that stands before the digest. A file that
was cut short or damaged on its way is told from one that some other program made.
"""

from __future__ import annotations

import hashlib
import struct

from edge_runtime.errors import ProgramError

MAGIC = b"FLXM"
VERSION = 1
IDENTIFIER = b"ET12"
"""ExecuTorch's mark of the format that this release runs; it stands at byte 4 of a program."""

_HEAD = struct.Struct("<4sI")
SEAL_BYTES = _HEAD.size + hashlib.sha256().digest_size


def seal(program: bytes) -> bytes:
    """The program file of an exported program."""
    sealed = program + _HEAD.pack(MAGIC, VERSION)
    return sealed + hashlib.sha256(sealed).digest()


def unseal(file: bytes) -> memoryview:
    """The program in a program file, without a copy; `ProgramError` says what is wrong with it."""
    view = memoryview(file)
    head = view[len(file) - SEAL_BYTES :][: _HEAD.size] if len(file) >= SEAL_BYTES else b""
    if head[:4] != MAGIC:
        if file[4:6] == IDENTIFIER[:2]:
            raise ProgramError(
                "the program has no seal: it was cut short, or not exported by flexmoe; "
                "export it again"
            )
        raise ProgramError("not a flexmoe program; export it again")
    version = _HEAD.unpack(head)[1]
    if version != VERSION:
        raise ProgramError(
            f"the program file has version {version}, this runtime reads version {VERSION}; "
            "export it again with the same flexmoe release"
        )
    if hashlib.sha256(view[:-32]).digest() != view[-32:]:
        raise ProgramError("the program is damaged: its bytes do not fit its seal; load it again")
    program = view[:-SEAL_BYTES]
    mark = bytes(program[4:8])
    if mark != IDENTIFIER:
        raise ProgramError(
            f"the program has ExecuTorch's format {mark!r}, this runtime reads {IDENTIFIER!r}; "
            "export it again with the same flexmoe release"
        )
    return program
