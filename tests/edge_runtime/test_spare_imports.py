"""What a device does not import, and that it is there all the same for who needs it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.spare_imports import _OWN_HASHES

ROOT = Path(__file__).parents[2]
DEVICE = """
from edge_runtime.spare_imports import spare_imports
spare_imports()
import sys
import edge_runtime.agent, edge_runtime.transport.mqtt, edge_runtime.shard, numpy.random
"""
CODECS = """
from edge_runtime.codec import known_codecs, parse_coding
print("double" in known_codecs(), sys.modules.get("importlib.metadata") is not None)
"""
DOUBLE = """
import numpy as np

class Double:
    name, biased = "double", False

    def __init__(self, argument):
        self.argument = argument

    def encode(self, tensors, rng):
        return b"".join(tensors[name].astype("<f8").tobytes() for name in sorted(tensors))
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


def test_codecs_of_no_other_package_load_nothing() -> None:
    assert python(DEVICE + CODECS) == "False False"


@pytest.mark.parametrize("kind", ["dist-info", "egg-info"])
def test_a_codec_of_another_package_is_found(tmp_path: Path, kind: str) -> None:
    facts = tmp_path / f"double_codec-1.0.{kind}"
    facts.mkdir()
    main = "METADATA" if kind == "dist-info" else "PKG-INFO"
    (facts / main).write_text("Metadata-Version: 2.1\nName: double-codec\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[console_scripts]\nx = y:z\n\n[flexmoe.codecs]\ndouble = double_codec:Double\n"
    )
    (tmp_path / "double_codec.py").write_text(DOUBLE)
    use = """
coding = parse_coding("double(7)")
print(coding.codec._codec.argument, type(coding.codec._codec).__module__)
print(len(coding.codec.encode({"w": numpy.zeros(3)}, None)))
"""
    shown = python(DEVICE + f"sys.path.append({str(tmp_path)!r})" + CODECS + use)
    assert shown.splitlines() == ["True True", "7 double_codec", "24"]


def test_packages_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    (tmp_path / "odd-1.0.dist-info" / "entry_points.txt").mkdir(parents=True)
    near = tmp_path / "near-1.0.dist-info"
    near.mkdir()
    (near / "entry_points.txt").write_bytes(b"\xff[flexmoe.codecs.more]\ndouble = a:b\n")
    paths = f"sys.path += ['', {str(tmp_path)!r}, {str(tmp_path / 'missing')!r}, 7]"
    assert python(DEVICE + paths + CODECS) == "False False"


def test_digests_are_the_same() -> None:
    show = "from edge_runtime.protocol.blob import digest\nimport hashlib\n"
    show += "print(digest(b'abc').hex(), hashlib.sha256(b'abc').hexdigest())"
    assert python(DEVICE + show) == python(show)


def test_what_is_used_after_all_is_loaded_then() -> None:
    """As it would be by an MQTT client behind a proxy, or with TLS."""
    use = """
import ssl, urllib.request
context = ssl.create_default_context()
print(type(context).__module__, ssl.SSLContext is type(context), ssl is not sys.modules["ssl"])
print(callable(urllib.request.getproxies), sys.modules["urllib.request"].__name__)
print(hasattr(ssl, "no_such_thing"), hasattr(urllib.request, "__no_such_thing__"))
"""
    assert python(DEVICE + use).splitlines() == [
        "ssl True True",
        "True urllib.request",
        "False False",
    ]


def test_the_errors_of_ssl_are_real_for_everyone_but_paho() -> None:
    use = """
from ssl import SSLWantReadError
import paho.mqtt.client as paho
early = paho.ssl.SSLWantReadError
import _ssl
print(SSLWantReadError is _ssl.SSLWantReadError, early is SSLWantReadError)
paho.Client(paho.CallbackAPIVersion.VERSION2).tls_set()
print(paho.ssl.SSLWantReadError is SSLWantReadError)
"""
    assert python(DEVICE + use).splitlines() == ["True False", "True"]


def test_threads_that_use_a_module_at_once_load_it_once() -> None:
    use = """
import ssl, threading, _ssl
start, found = threading.Barrier(16), []
def load():
    start.wait()
    found.append(ssl.SSLContext)
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=load) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), len(set(found)), sys.modules["ssl"].SSLContext is found[0])
"""
    assert python(DEVICE + use) == "16 1 True"


def test_a_load_that_fails_leaves_nothing_and_is_tried_again() -> None:
    use = """
import ssl
sys.modules["_ssl"] = None
for _ in range(2):
    try:
        ssl.SSLContext
    except ImportError as error:
        print(error.name, "ssl" in sys.modules)
del sys.modules["_ssl"]
print(ssl.SSLContext is sys.modules["ssl"].SSLContext)
"""
    assert python(DEVICE + use).splitlines() == ["_ssl False", "_ssl False", "True"]


def test_only_a_process_of_its_own_is_changed() -> None:
    """Whoever calls the command as a function keeps what is imported later as it was."""
    call = """
import os, sys
os.environ.pop("OMP_NUM_THREADS", None)
from edge_runtime import cli
sys.stderr = sys.stdout
sys.argv[1:] = ["device", "--broker", "nowhere", "--id", "a", "--data", "b"]
print(cli.main({}))
import ssl
print(type(ssl).__name__, os.environ.get("OMP_NUM_THREADS"))
"""
    assert python(call.format("sys.argv[1:]")).splitlines()[1:] == ["2", "module None"]
    assert python(call.format("")).splitlines()[1:] == ["2", "_Later 1"]


def test_pythons_own_hashes_are_those_that_this_version_has() -> None:
    own = [importlib.import_module(name) for name in _OWN_HASHES]
    for name in ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b"):
        assert any(hasattr(module, name) for module in own), name


def test_what_is_there_already_stays() -> None:
    before = "import ssl, hashlib, sys, urllib.request\nheld = ssl, sys.modules['_hashlib']\n"
    after = "print(held == (sys.modules['ssl'], sys.modules['_hashlib']), type(ssl).__name__)"
    assert python(before + DEVICE + after) == "True module"
