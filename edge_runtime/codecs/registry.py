"""Codecs by name and number: the built-in ones, and those of installed packages."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.codecs.contract import Codec
from edge_runtime.codecs.fp16 import Fp16
from edge_runtime.codecs.plugged import Plugged
from edge_runtime.codecs.quantized import Quantized
from edge_runtime.codecs.raw import Raw
from edge_runtime.codecs.topk import TopK, make_topk
from edge_runtime.compression import COMPRESSORS
from edge_runtime.errors import ConfigError, WireError

if TYPE_CHECKING:
    from importlib import metadata

GROUP = "flexmoe.codecs"
"""The entry-point group: name -> callable ``(argument: str) -> Codec``."""


def _plain(codec: Codec) -> Callable[[str], Codec]:
    """A codec that takes nothing in brackets."""

    def build(argument: str) -> Codec:
        if argument:
            raise ConfigError(f"codec {codec.name} takes nothing in brackets, got {argument!r}")
        return codec

    return build


# By number in a blob, from 1. A number is never given to another codec. What a body needs to be
# decoded is in it: a decoder's own share and bits play no part.
_DECODERS: tuple[Codec, ...] = (Raw(), Fp16(), Quantized(8), Quantized(4), TopK(1.0))
_BUILDERS: Mapping[str, Callable[[str], Codec]] = {
    **{codec.name: _plain(codec) for codec in _DECODERS},
    TopK.name: make_topk,
}


def names() -> list[str]:
    """The names of all codecs."""
    return [*_BUILDERS, *sorted(_plugins())]


def make(name: str, argument: str) -> Codec:
    """The codec `name` with what stood in brackets; `ConfigError` if there is none such."""
    if name in _BUILDERS:
        return _BUILDERS[name](argument)
    if name not in _plugins():
        raise ConfigError(f"unknown codec {name!r}; expected one of {', '.join(names())}")
    try:
        return Plugged(name, _plugins()[name].load()(argument))
    except ConfigError:
        raise
    except Exception as error:  # it is somebody else's code
        raise ConfigError(
            f"codec {name!r} of an installed package fails: {type(error).__name__}: {error}"
        ) from error


def number(codec: Codec) -> int:
    """What names a built-in codec in a blob; 0 for another."""
    return next((i + 1 for i, known in enumerate(_DECODERS) if known.name == codec.name), 0)


def builtin(known: int) -> Codec:
    """What decodes the built-in codec of this number, from 1; `WireError` if there is none."""
    if known > len(_DECODERS):
        raise WireError("unknown-codec", f"number {known}")
    return _DECODERS[known - 1]


def plugin(name: str, argument: str) -> Codec:
    """What decodes a blob of the plug-in `name`; `WireError` if there is none such."""
    if name not in _plugins():
        raise WireError("unknown-codec", name)
    try:
        return make(name, argument)
    except ConfigError as error:
        raise WireError("unknown-codec", str(error)) from None


@functools.cache
def _plugins() -> Mapping[str, metadata.EntryPoint]:
    # Looked for once: it reads the metadata of all installed packages.
    if not _announced():
        return {}
    from importlib import metadata

    taken = {*_BUILDERS, *COMPRESSORS}
    entries = metadata.entry_points(group=GROUP)
    return {entry.name: entry for entry in entries if entry.name not in taken}


def _announced() -> bool:
    """Whether an installed package says that it has codecs.

    Seldom: else a device does without `importlib.metadata`, which brings `email` and `zipfile`.
    """
    for folder in [Path(entry) for entry in sys.path if isinstance(entry, str)]:
        if folder.is_file():  # a zip file, into which only `importlib.metadata` looks
            return True
        for file in folder.glob("*.*-info/entry_points.txt"):
            with contextlib.suppress(OSError):  # a package that cannot be read is none
                if f"[{GROUP}]" in file.read_text(encoding="utf-8", errors="replace"):
                    return True
    return False
