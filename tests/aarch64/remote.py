"""Objects of an arm64 Python, used from this one: calls go there, results come back.

So this Python's PyTorch can judge code that runs under qemu. Arrays are copied both ways: what a
call writes into an argument is in the argument afterwards, but a returned array is no view.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.aarch64.packing import Held, arrays, mapped, pack, unpack

_IMPORT, _GETATTR = 0, 1


def arm_python() -> Path:
    """The arm64 Python, run by qemu, that has the wheel; `make test-aarch64` names its folder."""
    return Path(os.environ["FLEXMOE_AARCH64"]).resolve() / "venv" / "bin" / "python"


class Remote:
    """A process of `python`, an interpreter with flexmoe installed; ends at `close`."""

    def __init__(self, python: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("served.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._lock = threading.Lock()
        self.forgotten: list[int] = []  # objects over there that nobody here uses any more

    def module(self, name: str) -> Any:
        """The module of that name over there."""
        return self.call(_IMPORT, name)

    def call(self, number: int, *positional: Any, **named: Any) -> Any:
        """Call the object `number` over there; one at a time, whichever thread asks."""
        given = [positional, named]
        with self._lock:
            forgotten, self.forgotten = self.forgotten, []
            status, *answer = self._ask((forgotten, number, *pack(mapped(given, _named))))
        if status == "raised":
            raise answer[0]
        result, written = unpack(answer)
        for here, there in zip(arrays(given), written, strict=True):
            here[...] = there
        return self._known(result)

    def _ask(self, request: tuple[Any, ...]) -> Any:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            pickle.dump(request, requests)
            requests.flush()
            return pickle.load(answers)
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"the arm64 Python ended: {self._process.wait()}") from None

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _known(self, value: Any) -> Any:
        return (
            RemoteObject(self, value.number)
            if isinstance(value, Held)
            else mapped(value, self._known)
        )


class RemoteObject:
    """Stands for an object over there: its attributes, methods and calls are those."""

    def __init__(self, remote: Remote, number: int) -> None:
        self.__dict__.update(_remote=remote, _number=number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote.call(_GETATTR, self, name)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._remote.call(self._number, *positional, **named)

    def __del__(self) -> None:
        # Only noted: the interpreter may come here in the middle of a call.
        self._remote.forgotten.append(self._number)


def _named(value: Any) -> Any:
    return Held(value._number) if isinstance(value, RemoteObject) else mapped(value, _named)
