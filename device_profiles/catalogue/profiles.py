"""Where profiles are found: those that come with flexmoe, the user's own, and single files.

The user's are in the folders boards/ and links/ of `$FLEXMOE_PROFILES`, else of flexmoe/profiles in
the user's config folder. None of them may have the name of one that comes with flexmoe.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from device_profiles.catalogue.board import Board
from device_profiles.catalogue.link_class import LinkClass
from device_profiles.catalogue.profile_file import read_board, read_link, to_toml
from edge_runtime.errors import ConfigError
from edge_runtime.protocol.topics import valid_name

__all__ = [
    "LINKS",
    "PUBLISHED_LINKS",
    "boards",
    "find_board",
    "find_link",
    "links",
    "profiles_root",
    "read_board",
    "read_link",
    "to_toml",
]

_OURS = Path(__file__).parent
_TEMPLATE = "custom"
_NEAREST = 3

P = TypeVar("P", bound=Board | LinkClass)


def profiles_root() -> Path:
    """The folder of the user's own profiles."""
    named = os.environ.get("FLEXMOE_PROFILES")
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(named) if named else Path(base) / "flexmoe" / "profiles"


class _Shelf(Generic[P]):
    """The profiles of one kind. `order` sorts them; ours are read once."""

    def __init__(
        self, noun: str, folder: str, read: Callable[[Path], P], order: Callable[[P], Any]
    ) -> None:
        self._noun = noun
        self._folder = folder
        self._read = read
        self._order = order

    @cached_property
    def ours(self) -> Mapping[str, P]:
        """Those that come with flexmoe, by name, in order."""
        return self._sorted(self._read(file) for file in (_OURS / self._folder).glob("*.toml"))

    def all(self) -> Mapping[str, P]:
        """Ours and the user's, by name, in order."""
        own = [self._read(self._own(name)) for name in self._own_names()]
        return self._sorted([*self.ours.values(), *own])

    def find(self, name: str, folder: Path | None) -> P:
        """The one that is called so, or that is in the file of this path."""
        if name.endswith(".toml"):
            return self._read((folder or Path()) / os.path.expanduser(name))
        if valid_name(name) and os.path.exists(self._own(name)):
            return self._read(self._own(name))
        if name in self.ours:
            return self.ours[name]
        known = sorted({*self.ours, *self._own_names()})
        by_letters = {_letters(other): other for other in known}
        close = difflib.get_close_matches(_letters(name), by_letters, n=_NEAREST, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(by_letters[letters] for letters in close)}?"
            if close
            else f"known are {', '.join(known)}"
        )
        raise ConfigError(
            f"{json.dumps(name)}: no such {self._noun}; {hint} (a file's path must end in .toml)"
        )

    def _own_names(self) -> list[str]:
        return [file.stem for file in sorted((profiles_root() / self._folder).glob("*.toml"))]

    def _own(self, name: str) -> Path:
        """Where the user's profile of this name would be; it must not stand beside one of ours."""
        file = profiles_root() / self._folder / f"{name}.toml"
        if name in self.ours and os.path.exists(file):
            raise ConfigError(
                f"{file}: flexmoe has a {self._noun} called {name}; give the file another name"
            )
        return file

    def _sorted(self, profiles: Iterable[P]) -> Mapping[str, P]:
        found = sorted(profiles, key=self._order)
        return MappingProxyType({profile.name: profile for profile in found})


def _letters(name: str) -> str:
    """What is left of a name however it is written."""
    return "".join(filter(str.isalnum, name)).lower()


_BOARDS = _Shelf[Board](
    "board",
    "boards",
    read_board,
    lambda board: (not board.supported, board.integer_mips.value, board.name),
)
_LINKS = _Shelf[LinkClass](
    "class of links",
    "links",
    read_link,
    lambda link: (link.name == _TEMPLATE, -link.up_rate.value, link.name),
)


def boards() -> Mapping[str, Board]:
    """All boards by name, the slowest first, those without a runtime last."""
    return _BOARDS.all()


def links() -> Mapping[str, LinkClass]:
    """All classes of links by name, the fastest first, the template last."""
    return _LINKS.all()


def find_board(name: str, folder: Path | None = None) -> Board:
    """The board called `name`, or in the file of this path if it ends in ``.toml``.

    A relative path starts at `folder`, else at the working directory. `ConfigError` names those
    whose names are nearest.
    """
    return _BOARDS.find(name, folder)


def find_link(name: str, folder: Path | None = None) -> LinkClass:
    """The class of links called `name`, or in the file of this path; see `find_board`."""
    return _LINKS.find(name, folder)


LINKS: Mapping[str, LinkClass] = _LINKS.ours
"""The classes of links that come with flexmoe, by name, the fastest first, the template last."""

PUBLISHED_LINKS: Mapping[str, LinkClass] = MappingProxyType(
    {name: link for name, link in LINKS.items() if name != _TEMPLATE}
)
"""Those of them whose figures are of something real."""
