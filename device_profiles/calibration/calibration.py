"""What this host computes and copies, by work like that of the published figures of boards.

Other programs may run meanwhile: every rate is the best of several short spans, in CPU time of one
thread, which waiting for a core does not lengthen. What stays are shared caches and memory: a host
under load may seem up to a fifth slower.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import lzma
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from device_profiles.calibration.host_figures import HostFigures
from edge_runtime import __version__
from edge_runtime.cgroup import usable_cores
from edge_runtime.program_cache import cache_root

log = logging.getLogger("flexmoe.calibration")

TEXT_BYTES = 512 * 1024
MATRIX = 512
COPY_BYTES = 32 * 1024 * 1024  # as tinymembench, which sbc-bench runs; no cache holds it
CPUINFO = Path("/proc/cpuinfo")
MODEL = Path("/proc/device-tree/model")  # boards with a device tree say here what they are

# 7-zip's rating is the mean of compressing and decompressing; so is ours. Its MIPS over our 10^6
# bytes a second, each by the CPU time of one thread: medians of turns of `7z b -mmt1` (7-zip 26.02,
# column R/U MIPS) and of `_compress`, `_decompress` one after the other, on an AMD EPYC (Zen 5)
# with liblzma 5.4.1. liblzma 5.6 and later decompress faster on x86-64: they make a host seem a
# little faster than 7-zip would.
_COMPRESSING = 720.0
_DECOMPRESSING = 56.2
_LEAST_SPANS = 2


def measure(seconds: float = 2.0) -> HostFigures:
    """This host, in about so many seconds, more if it is slow: each span comes twice at least."""
    from edge_runtime.native import _native

    kernels = _native.kernels(threads=1)
    span_s = seconds / 4
    a, b = np.random.default_rng(0).standard_normal((2, MATRIX, MATRIX)).astype(np.float32)
    gemm_s = best_span_s(lambda: kernels.gemm(a, b), span_s)
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    copy_s = best_span_s(lambda: np.copyto(target, source), span_s)
    return HostFigures(
        cpu=cpu_name(),
        architecture=platform.machine(),
        cores=whole_cores(),
        isa=kernels.isa,
        integer_mips=sum(_integer_mips(seconds - 2 * span_s)) / 2,
        gemm_gflops=2 * MATRIX**3 / gemm_s / 1e9,
        memory_mb_s=COPY_BYTES / copy_s / 1e6,
    )


def of_this_host(cache: Path | None = None) -> HostFigures:
    """As `measure`, but once for a CPU and version: kept in `cache`, None: the user's folder.

    A file that is damaged is measured anew; a folder that cannot be written is told in the log.
    """
    with contextlib.suppress(OSError, ValueError):
        return HostFigures.from_record(json.loads(_path(cache).read_bytes()))
    figures = measure()
    keep(figures, cache)
    return figures


def keep(figures: HostFigures, cache: Path | None = None) -> None:
    """Let `of_this_host` tell these figures from now on."""
    path = _path(cache)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(figures.to_record(), indent=1))
        os.replace(part, path)
    except OSError as error:
        log.warning("this host's figures cannot be kept in %s (%s)", path, error.strerror or error)


def _path(cache: Path | None) -> Path:
    return (cache or cache_root()) / f"host-{_key()}.json"


def best_span_s(work: Callable[[], object], seconds: float) -> float:
    """The least CPU seconds that `work` took in this thread, tried again for `seconds`."""
    work()  # loads what it needs, and touches its memory
    best, spans, until_s = float("inf"), 0, time.monotonic() + seconds
    while spans < _LEAST_SPANS or time.monotonic() < until_s:
        began_s = time.thread_time()
        work()
        best, spans = min(best, time.thread_time() - began_s), spans + 1
    return best


def whole_cores() -> int:
    """The whole cores that this process may use, at least 1."""
    return max(1, int(usable_cores()))


def cpu_name(cpuinfo: Path = CPUINFO, model: Path = MODEL) -> str:
    """What the machine calls itself: the board's name, else the CPU's."""
    return board_model(model) or _model_name(cpuinfo) or platform.machine()


def board_model(model: Path = MODEL) -> str:
    """The name of this board by its device tree; empty on a machine without one."""
    try:
        return model.read_bytes().rstrip(b"\0").decode(errors="replace").strip()
    except OSError:
        return ""


def _model_name(cpuinfo: Path) -> str:
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return ""


def _key() -> str:
    """What a measurement depends on, as a name for its file."""
    from edge_runtime.native import _native

    isa = _native.kernels(threads=1).isa
    facts = [cpu_name(), platform.machine(), str(whole_cores()), isa, __version__]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _integer_mips(seconds: float) -> tuple[float, float]:
    """Compressing and decompressing, each on 7-zip's scale."""
    text = _text()
    coded = _compress(text)
    compress_s = best_span_s(functools.partial(_compress, text), 0.8 * seconds)
    decompress_s = best_span_s(functools.partial(_decompress, coded), 0.2 * seconds)
    megabytes = TEXT_BYTES / 1e6
    return _COMPRESSING * megabytes / compress_s, _DECOMPRESSING * megabytes / decompress_s


_FILTERS = ({"id": lzma.FILTER_LZMA2, "preset": 5, "dict_size": TEXT_BYTES},)


def _compress(text: bytes) -> bytes:
    return lzma.compress(text, lzma.FORMAT_RAW, filters=_FILTERS)


def _decompress(coded: bytes) -> bytes:
    return lzma.decompress(coded, lzma.FORMAT_RAW, filters=_FILTERS)


def _text() -> bytes:
    """The same pseudo-text everywhere: words of two to ten letters, common and rare ones."""
    chance = random.Random(7)
    letters = b"abcdefghijklmnopqrstuvwxyz"
    words = [
        bytes(letters[int(26 * chance.random())] for _ in range(2 + n % 9)) for n in range(4096)
    ]
    text = bytearray()
    while len(text) < TEXT_BYTES:
        text += words[int(len(words) * chance.random() * chance.random())] + b" "
    return bytes(text[:TEXT_BYTES])
