"""Programs on disk, found by what they were made from.

Exporting takes seconds, and a program depends only on (model, k, batch, role, kernels, balance), on
this package's code and on the versions of torch and executorch; the key covers them all.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

from edge_runtime import program_file
from edge_runtime.errors import ProgramError
from edge_runtime.layout import ProgramLayout
from model_export.models import ModelSpec
from model_export.program import Program, effective_balance, export_program, make_layout

# All of this package, and how programs are sealed: whatever may change a program's bytes.
_SOURCES = (*sorted(Path(__file__).parent.rglob("*.py")), Path(program_file.__file__))


class ProgramCache:
    """A folder of exported programs: `<key>.pte` beside `<key>.json`."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or default_directory()
        self._loaded: dict[tuple[ProgramLayout, float], Program] = {}
        self.exported = 0

    def get(
        self,
        spec: ModelSpec,
        k: int,
        batch: int,
        role: str,
        kernels: str,
        *,
        balance: float = 0.0,
    ) -> Program:
        """The program, exported now if it is not there; a damaged entry is exported again.

        `balance` is the coefficient of the balance term; programs that have no use for it are one
        entry for all coefficients.
        """
        layout = make_layout(spec, k, batch, role, kernels)
        balance = effective_balance(layout, balance)
        program = self._loaded.get((layout, balance))
        if program is None:
            key = _key(layout, balance)
            program = self._read(key, layout)
            if program is None:
                program = export_program(spec, k, batch, role, kernels, balance=balance)
                self.exported += 1
                self._write(key, program)
            self._loaded[layout, balance] = program
        return program

    def _read(self, key: str, layout: ProgramLayout) -> Program | None:
        try:
            facts = json.loads((self._directory / f"{key}.json").read_text())
            data = (self._directory / f"{key}.pte").read_bytes()
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                return None
            return Program(data, layout, int(facts["arena_bytes"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, key: str, program: Program) -> None:
        facts = {
            "sha256": hashlib.sha256(program.data).hexdigest(),
            "arena_bytes": program.arena_bytes,
        }
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            _replace(self._directory / f"{key}.pte", program.data)
            _replace(self._directory / f"{key}.json", json.dumps(facts).encode())
        except OSError as error:
            raise ProgramError(
                f"cannot write the program cache {self._directory}: {error.strerror}; "
                "set FLEXMOE_CACHE to a folder that can be written"
            ) from None


def default_directory() -> Path:
    """`FLEXMOE_CACHE`, else the user's cache folder."""
    named = os.environ.get("FLEXMOE_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flexmoe" / "programs"


def _key(layout: ProgramLayout, balance: float) -> str:
    facts = {
        "layout": layout.to_json(),  # with the layout's version: the program carries it
        "balance": balance,
        "versions": [importlib.metadata.version(name) for name in ("torch", "executorch")],
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _SOURCES],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _replace(path: Path, data: bytes) -> None:
    """Write whole or not at all: another run may read the folder at the same time."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
