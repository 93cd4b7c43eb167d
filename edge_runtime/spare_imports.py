"""Keeps out of a device's memory what its libraries import and it never uses: 7 MiB.

paho-mqtt imports `ssl` and `urllib.request` (with HTTP and e-mail) for brokers behind TLS or a
proxy; both come when something of them is used. `hashlib` imports OpenSSL although it has most
hashes built in; `hashlib.scrypt`, and from Python 3.12 on `hashlib.pbkdf2_hmac`, are OpenSSL's
alone, and missing then.

This changes what the whole process imports: it is for one that is a device and nothing else.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

_SHA2 = ("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")
_OWN_HASHES = ("_md5", "_sha1", "_sha3", "_blake2", *_SHA2)

_removal = threading.Lock()


class _Later(ModuleType):
    """Stands for a module; becomes it when something of it is used that is not set yet."""

    def __init__(self, name: str, load: Callable[[], ModuleType]) -> None:
        super().__init__(name)
        self._load = load

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks for these
            raise AttributeError(name)
        # Two threads may come here at once. The import has a lock of its own.
        with _removal:
            if isinstance(sys.modules.get(self.__name__), _Later):
                del sys.modules[self.__name__]
        module = self._load()
        self.__dict__.update(module.__dict__)
        return getattr(module, name)


class _Never(OSError):
    """In place of `ssl`'s errors, which nobody raises while `ssl` is not loaded."""


def spare_imports() -> None:
    """Call it before anything else is imported; what is loaded already stays."""
    if all(importlib.util.find_spec(name) for name in _OWN_HASHES):
        sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]
    _stand_in("urllib.request", _load_request)
    _stand_in_for_paho()
    _stand_in("ssl", _load_ssl)


def _stand_in_for_paho() -> None:
    """Give paho a stand-in for `ssl` of its own.

    Its except clauses name two of ssl's errors, and every empty socket looks at them. Whoever else
    asks for these has a reason, and is given the real ones.
    """
    if "ssl" in sys.modules or "paho.mqtt.client" in sys.modules:
        return
    _stand_in("ssl", _load_ssl, SSLWantReadError=_Never, SSLWantWriteError=_Never)
    import paho.mqtt.client  # noqa: F401

    if isinstance(sys.modules.get("ssl"), _Later):
        del sys.modules["ssl"]


def _load_ssl() -> ModuleType:
    import ssl

    return ssl


def _load_request() -> ModuleType:
    import urllib.request

    return urllib.request


def _stand_in(name: str, load: Callable[[], ModuleType], **known: object) -> None:
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        return
    module = sys.modules[name] = _Later(name, load)
    module.__spec__ = spec
    module.__dict__.update(known)
    package, _, child = name.rpartition(".")
    if package:
        setattr(sys.modules[package], child, module)  # as an import does
