"""Profiles as files: TOML to a `Board` or a `LinkClass` and back.

A profile's name is its file's. Every defect becomes one `ConfigError` of one line: the file, the
key, what was expected and what came; the first one is named.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from device_profiles.catalogue.board import ARCHITECTURES, BOARD_KEYS, Board
from device_profiles.catalogue.figure import Figure, FigureKey
from device_profiles.catalogue.link_class import LINK_KEYS, LinkClass
from edge_runtime.errors import ConfigError
from edge_runtime.protocol.topics import bad_name, valid_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TEXT = "a text of one line, not empty"
_FIGURE = "a table of value, source and, if it is so, assumed = true"
_ABOUT = {
    "title": "What people call it.",
    "architecture": f"One of {', '.join(ARCHITECTURES)}.",
    "supported": "Whether flexmoe's runtime runs on it.",
    "unsupported_because": "Why flexmoe's runtime does not run on it.",
    "link": "The class of the link that it usually has: a name that `flexmoe profiles list` shows.",
}
_FIGURES_ARE = (
    "Each figure has a value and a source, and is assumed where nobody published it as it stands."
)
_SHOWN_CHARACTERS = 80
_EXACT_INTEGERS = 2**53


def read_board(path: Path) -> Board:
    """The board in a file; raises `ConfigError`."""
    table = _Table.of_file(path, "board")
    texts = ("title", "architecture", "supported", "unsupported_because", "link")
    table.know((*texts, *(key.key for key in BOARD_KEYS)))
    supported = table.flag("supported", True)
    if supported and "unsupported_because" in table.raw:
        raise table.defect("unsupported_because", "it only beside supported = false")
    board = Board(
        name=path.stem,
        title=table.text("title"),
        architecture=table.choice("architecture", ARCHITECTURES),
        supported=supported,
        unsupported_because="" if supported else table.text("unsupported_because"),
        link=table.profile_name("link"),
        **table.figures(BOARD_KEYS),
    )
    if board.memory_mib.value > board.ram_mib.value:
        expected = f"at most ram_mib, {board.ram_mib.value:.10g}"
        raise table.defect("memory_mib.value", expected, board.memory_mib.value)
    return board


def read_link(path: Path) -> LinkClass:
    """The class of links in a file; raises `ConfigError`."""
    table = _Table.of_file(path, "class of links")
    table.know(("title", *(key.key for key in LINK_KEYS)))
    return LinkClass(name=path.stem, title=table.text("title"), **table.figures(LINK_KEYS))


def to_toml(profile: Board | LinkClass) -> str:
    """What `read_board` or `read_link` reads as this profile; comments say what each key is."""
    if isinstance(profile, Board):
        kind = "board"
        keys: tuple[FigureKey, ...] = BOARD_KEYS
        texts: dict[str, str | bool] = {
            "title": profile.title,
            "architecture": profile.architecture,
            "supported": profile.supported,
            "unsupported_because": profile.unsupported_because,
            "link": profile.link,
        }
        if profile.supported:
            del texts["unsupported_because"]
    else:
        kind, keys, texts = "class of links", LINK_KEYS, {"title": profile.title}
    lines = _comment(f"A {kind}. Its name is the file's, without .toml. {_FIGURES_ARE}")
    for key, value in texts.items():
        lines += ["", *_comment(_ABOUT[key]), f"{key} = {_toml(value)}"]
    for figure_key in keys:
        figure: Figure | None = getattr(profile, figure_key.key)
        if figure is None:
            continue
        lines += ["", *_comment(figure_key.about), f"[{figure_key.key}]"]
        lines += [f"value = {_toml(figure.value)}", f"source = {_toml(figure.source)}"]
        lines += ["assumed = true"] if figure.assumed else []
    return "\n".join(lines) + "\n"


class _Table:
    """A table of a file; `prefix` leads to it."""

    def __init__(self, file: Path, raw: dict[str, Any], prefix: str = "") -> None:
        self.raw = raw
        self._file = file
        self._prefix = prefix

    @classmethod
    def of_file(cls, file: Path, kind: str) -> _Table:
        """All that is in a file."""
        if not valid_name(file.stem):
            raise ConfigError(f"{_one_line(str(file))}: {bad_name(kind, file.stem)}")
        try:
            with file.open("rb") as stream:
                return cls(file, tomllib.load(stream))
        except FileNotFoundError:
            raise ConfigError(
                f"{file}: no such file; expected a {kind} in TOML, as `flexmoe profiles show NAME "
                "--toml` prints one"
            ) from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{file}: not TOML: expected a text in UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: not TOML: {_one_line(str(error))}") from None

    def defect(self, key: str, expected: str, *came: object) -> ConfigError:
        """What to raise for a key's value, which is `came` if it is not in the table as it is."""
        value = _shown(came[0]) if came else _shown(self.raw[key]) if key in self.raw else "nothing"
        return ConfigError(f"{self._file}: {self._prefix}{key}: expected {expected}, got {value}")

    def know(self, keys: Iterable[str]) -> None:
        """Refuse every other key."""
        known = list(keys)
        for key in self.raw:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                unknown = f"{self._prefix}{_one_line(key)}"
                raise ConfigError(f"{self._file}: unknown key {unknown}; {hint}")

    def text(self, key: str) -> str:
        value = self.raw.get(key)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self.defect(key, _TEXT)
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.raw.get(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.defect(key, " or ".join(f'"{name}"' for name in allowed))
        return value

    def profile_name(self, key: str) -> str:
        value = self.raw.get(key)
        if not isinstance(value, str) or not valid_name(value):
            raise self.defect(key, "the name of a class of links")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self.defect(key, "true or false")
        return value

    def figures(self, keys: Iterable[FigureKey]) -> dict[str, Figure]:
        """By key; optional ones only if they are there."""
        return {
            key.key: self._figure(key)
            for key in keys
            if not (key.optional and key.key not in self.raw)
        }

    def _figure(self, key: FigureKey) -> Figure:
        raw = self.raw.get(key.key)
        if not isinstance(raw, dict):
            raise self.defect(key.key, _FIGURE)
        table = _Table(self._file, raw, f"{self._prefix}{key.key}.")
        table.know(("value", "source", "assumed"))
        value = _number(raw.get("value"))
        if value is None or not key.limit.holds(value):
            raise table.defect("value", key.limit.text)
        return Figure(value, table.text("source"), table.flag("assumed", False))


def _number(value: object) -> float | None:
    """As a float; None if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, width=98)]


def _toml(value: str | bool | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    whole = float(value).is_integer() and abs(value) < _EXACT_INTEGERS
    return str(int(value)) if whole else repr(float(value))


def _shown(value: object) -> str:
    if isinstance(value, bool | str):
        return _one_line(_toml(value))
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    try:
        return _one_line(str(value))
    except ValueError:  # more digits than Python turns into text
        return "a number of thousands of digits"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
