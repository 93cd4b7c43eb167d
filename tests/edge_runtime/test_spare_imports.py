"""What a device does not import, and that it is there all the same for who needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEVICE = """
from edge_runtime.spare_imports import spare_imports
spare_imports()
import sys
import edge_runtime.agent, edge_runtime.mqtt, edge_runtime.shard, numpy.random
"""


def python(code: str) -> str:
    """What `code` prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_a_device_loads_neither_openssl_nor_http_nor_mail() -> None:
    unused = "{'_ssl', '_hashlib', 'http.client', 'email', 'importlib.metadata'}"
    check = f"print(sorted(name for name in {unused} if sys.modules.get(name)))"
    assert python(DEVICE + check) == "[]"


def test_digests_are_the_same() -> None:
    show = "from edge_runtime.blob import digest\nimport hashlib\n"
    show += "print(digest(b'abc').hex(), hashlib.sha256(b'abc').hexdigest())"
    assert python(DEVICE + show) == python(show)


def test_what_is_used_after_all_is_loaded_then() -> None:
    """As it would be by an MQTT client behind a proxy, or with TLS."""
    use = """
import ssl, urllib.request
early = ssl.SSLWantReadError
context = ssl.create_default_context()
print(type(context).__module__, ssl.SSLWantReadError is not early, ssl.SSLContext is type(context))
print(callable(urllib.request.getproxies), sys.modules["urllib.request"].__name__)
print(hasattr(ssl, "no_such_thing"), hasattr(urllib.request, "__no_such_thing__"))
"""
    assert python(DEVICE + use).splitlines() == [
        "ssl True True",
        "True urllib.request",
        "False False",
    ]


def test_what_is_there_already_stays() -> None:
    before = "import ssl, hashlib, sys, urllib.request\nheld = ssl, sys.modules['_hashlib']\n"
    after = "print(held == (sys.modules['ssl'], sys.modules['_hashlib']), type(ssl).__name__)"
    assert python(before + DEVICE + after) == "True module"
