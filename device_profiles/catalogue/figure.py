"""A constant of a profile, where it is from, and what it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A constant and where it is from; `assumed` where nobody published it as it stands."""

    value: float
    source: str
    assumed: bool = False

    @property
    def said(self) -> str:
        """Its source, marked if it is assumed."""
        return f"ASSUMED: {self.source}" if self.assumed else self.source


@dataclass(frozen=True)
class Limit:
    """What a value may be; `text` says so in an error."""

    text: str
    holds: Callable[[float], bool]


POSITIVE = Limit("a number above 0", lambda value: value > 0)
NOT_NEGATIVE = Limit("a number from 0", lambda value: value >= 0)
WHOLE = Limit("a whole number from 1", lambda value: value >= 1 and value.is_integer())
BELOW_ONE = Limit("a share from 0 to below 1", lambda value: 0 <= value < 1)
UP_TO_ONE = Limit("a share above 0, at most 1", lambda value: 0 < value <= 1)


@dataclass(frozen=True)
class FigureKey:
    """A figure that profiles of one kind have: its key, its name with the unit, what it is."""

    key: str
    label: str
    about: str
    limit: Limit
    optional: bool = False


def figures_of(profile: object, keys: tuple[FigureKey, ...]) -> dict[str, Figure]:
    """The figures of a profile by label, as far as they are known."""
    found = {key.label: getattr(profile, key.key) for key in keys}
    return {label: figure for label, figure in found.items() if figure is not None}
