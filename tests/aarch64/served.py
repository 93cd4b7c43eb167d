"""The other end of `remote.py`: does what it is told over its standard input and output.

Runs as a script of the arm64 Python. The repository is last on its path, so `edge_runtime` is that
of the installed wheel.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))

from tests.aarch64.packing import Held, arrays, mapped, pack, unpack


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer calls until the other end is closed."""
    held: dict[int, Any] = {0: importlib.import_module, 1: getattr}

    def known(value: Any) -> Any:
        return held[value.number] if isinstance(value, Held) else mapped(value, known)

    def told(value: Any) -> Any:
        if isinstance(value, (tuple, list, dict)) or dataclasses.is_dataclass(value):
            return mapped(value, told)
        if value is None or isinstance(
            value, (bool, int, float, str, bytes, np.generic, np.ndarray)
        ):
            return value
        number = max(held) + 1
        held[number] = value
        return Held(number)

    while True:
        try:
            forgotten, number, *given = pickle.load(requests)
        except EOFError:
            return
        for old in forgotten:
            del held[old]
        positional, named = known(unpack(given))
        try:
            result = held[number](*positional, **named)
            answer: tuple[Any, ...] = (
                "done",
                pack(told(result)),
                pack(list(arrays([positional, named]))),
            )
        except Exception as error:
            answer = ("raised", error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not mix with the answers
    serve(sys.stdin.buffer, answers)
