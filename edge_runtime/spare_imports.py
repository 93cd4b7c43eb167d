"""Keeps out of a device's memory what its libraries import and it never uses: 7 MiB.

paho-mqtt imports `ssl` and `urllib.request` (with HTTP and e-mail) for brokers behind TLS or a
proxy, `hashlib` imports OpenSSL although it has most hashes built in.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

_OWN_HASHES = ("_md5", "_sha1", "_sha3", "_blake2")


class _Later(ModuleType):
    """Stands for a module; becomes it when something of it is used that is not set yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks for these
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        spec = importlib.util.find_spec(self.__name__)
        if spec is None or spec.loader is None:
            raise AttributeError(f"no module {self.__name__} for its {name}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.__name__] = module
        spec.loader.exec_module(module)
        self.__dict__.update(module.__dict__)
        return getattr(module, name)


class _Never(OSError):
    """In place of `ssl`'s errors, which nobody raises while `ssl` is not loaded."""


def spare_imports() -> None:
    """Call it before anything else is imported; what is loaded already stays."""
    # paho names these two errors in its except clauses: every empty socket looks at them.
    _stand_in("ssl", SSLWantReadError=_Never, SSLWantWriteError=_Never)
    _stand_in("urllib.request")
    if all(importlib.util.find_spec(name) for name in _OWN_HASHES):
        sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]


def _stand_in(name: str, **known: object) -> None:
    if name in sys.modules or importlib.util.find_spec(name) is None:
        return
    module = sys.modules[name] = _Later(name)
    module.__dict__.update(known)
    package, _, child = name.rpartition(".")
    if package:
        setattr(sys.modules[package], child, module)  # as an import does
