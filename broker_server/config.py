"""Experiment files: TOML to `Experiment` and back, with errors that a user can act on.

Every defect becomes one `ConfigError` of one line: the file (or the ``--set``), the key, what is
allowed and what came. Of several defects the first is named and the others are counted.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from broker_server.config_text import LISTED, to_toml, toml_value
from broker_server.experiment import Experiment
from broker_server.field_types import Section
from edge_runtime.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Experiment", "load_experiment", "to_toml"]

_MISSING = object()
_SHOWN_CHARACTERS = 160
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_TRACE = re.compile(r"(trace\s*\(\s*)(.+?)(\s*\)\s*(?=\+|$))")
"""A file where an availability names one."""


def load_experiment(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in the file `path`, changed by `overrides` such as ``train.epochs=3``.

    An override's value is read as TOML, and as a plain text where that fails or where the key wants
    a text. Paths (``data.path``, ``assignment.file``, those of a fleet's profile, link and trace)
    come back absolute: in the file they start at the file's folder, in an override at the working
    directory. Raises `ConfigError`.
    """
    file = Path(path)
    raw = _read(file)
    _anchor(raw, file.parent)
    sources: dict[str, str] = {}
    for override in overrides:
        key, value = _parse_override(override)
        raw = _with(raw, key.split("."), value, override)
        _anchor(raw, Path())
        sources[key] = f"--set {override}"
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, raw, str(file), sources)) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such file; expected an experiment in TOML, such as those in experiments/"
        ) from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not TOML: expected a text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not TOML: {_one_line(str(error))}") from None


def _anchor(raw: dict[str, Any], folder: Path) -> None:
    """Make paths absolute, in place; a relative one starts at `folder`."""
    for name, key in (("data", "path"), ("assignment", "file")):
        section = raw.get(name)
        if isinstance(section, dict) and isinstance(section.get(key), str) and section[key]:
            section[key] = _absolute(section[key], folder)
    fleets = raw.get("fleet")
    for fleet in fleets if isinstance(fleets, list) else ():
        for key in ("profile", "link", "availability") if isinstance(fleet, dict) else ():
            if not isinstance(fleet.get(key), str):
                continue
            if key == "availability":
                fleet[key] = _TRACE.sub(
                    lambda found: f"{found[1]}{_absolute(found[2], folder)}{found[3]}", fleet[key]
                )
            elif fleet[key].endswith(".toml"):
                fleet[key] = _absolute(fleet[key], folder)


def _absolute(path: str, folder: Path) -> str:
    return os.path.abspath(folder / os.path.expanduser(path))


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise ConfigError(f"--set {_one_line(override)}: expected key=value, as in train.epochs=3")
    if key == "broker":
        key = "broker.address"
    try:
        value: Any = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return key, text
    if value.keys() != {"value"}:
        return key, text
    field = _field(key)
    wants_text = field is not None and field.annotation is str
    return key, text if wants_text and not isinstance(value["value"], str) else value["value"]


def _with(raw: dict[str, Any], parts: list[str], value: Any, override: str) -> dict[str, Any]:
    """A copy of `raw` in which the key `parts` is `value`."""
    first, *rest = parts
    if not rest:
        return {**raw, first: value}
    inner = raw.get(first, {})
    if first == "broker" and isinstance(inner, str):
        inner = {"address": inner}
    if first in LISTED and isinstance(inner, list):
        return {**raw, first: _with_item(inner, rest, value, override)}
    if not isinstance(inner, dict):
        raise ConfigError(
            f"--set {_one_line(override)}: expected {first} to be a table in the experiment file, "
            f"got {_shown(inner)}"
        )
    return {**raw, first: _with(inner, rest, value, override)}


def _with_item(items: list[Any], parts: list[str], value: Any, override: str) -> list[Any]:
    """A copy of `items` in which the key `parts`, such as 0, count, is `value`."""
    number, *rest = parts
    if not number.isdecimal() or int(number) >= len(items) or not rest:
        raise ConfigError(
            f"--set {_one_line(override)}: expected a table's number, from 0 to {len(items) - 1}, "
            "and its key, as in fleet.0.count=3"
        )
    place = int(number)
    if not isinstance(items[place], dict):
        raise ConfigError(
            f"--set {_one_line(override)}: expected item {place} to be a table in the experiment "
            f"file, got {_shown(items[place])}"
        )
    return [*items[:place], _with(items[place], rest, value, override), *items[place + 1 :]]


def _field(key: str) -> FieldInfo | None:
    """What is known of a key; the items of a list of tables are all alike."""
    parts = key.split(".")
    if parts[0] in LISTED and len(parts) == 3:
        parts = [parts[0], parts[2]]
    return _fields().get(".".join(parts))


def _fields() -> dict[str, FieldInfo]:
    """Every known key, dotted."""
    known: dict[str, FieldInfo] = {}
    for name, field in Experiment.model_fields.items():
        known[name] = field
        if _is_section(field):
            section: type[Section] = field.annotation  # type: ignore[assignment]
            known |= {f"{name}.{key}": inner for key, inner in section.model_fields.items()}
    for name, item in LISTED.items():
        known |= {f"{name}.{key}": inner for key, inner in item.model_fields.items()}
    return known


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _explain(
    error: ValidationError, raw: dict[str, Any], file: str, sources: dict[str, str]
) -> str:
    """One line: source, key, what is allowed, what came, how many more defects."""
    defects = error.errors(include_url=False)
    first = defects[0]
    context = first.get("ctx", {})
    key = str(context["key"]) if first["type"] == "conflict" else ".".join(map(str, first["loc"]))
    related = [set_key for set_key in sources if f"{set_key}.".startswith(f"{key}.")]
    related += [set_key for set_key in sources if f"{key}.".startswith(f"{set_key}.")]
    source = sources[related[0]] if related else file
    more = len(defects) - 1 + int(context.get("more", 0))
    tail = f" (and {more} more defect{'s' if more > 1 else ''})" if more else ""
    return f"{_one_line(source)}: {_defect(first, key, raw)}{tail}"


def _defect(defect: ErrorDetails, key: str, raw: dict[str, Any]) -> str:
    if defect["type"] == "extra_forbidden":
        return f"unknown key {_one_line(key)}; {_nearest(key)}"
    value = _look_up(raw, key)
    came = "nothing" if value is _MISSING else _shown(value)
    return f"{key}: expected {_allowed(defect, _field(key))}, got {came}"


def _allowed(defect: ErrorDetails, field: FieldInfo | None) -> str:
    context = defect.get("ctx", {})
    if defect["type"] == "conflict":
        return str(context["allowed"])
    if defect["type"] == "value_error":
        return str(context["error"])
    if field is None or _is_section(field):
        return "a table"
    if field.annotation in (tuple, Experiment.model_fields["fleet"].annotation):
        return "a list of tables, as [[fleet]] makes it"
    if get_origin(field.annotation) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(field.annotation))
    kind = _KINDS[field.annotation]  # type: ignore[index]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in signs.items()
        if hasattr(rule, name)
    ]
    return " ".join([kind, " and ".join(bounds)]).strip()


def _nearest(key: str) -> str:
    """The known key whose last part is most like that of `key`; one of its own section first."""
    known = list(_fields())
    section, _, last = key.rpartition(".")
    section = section.partition(".")[0]
    inside = [name for name in known if section and name.startswith(f"{section}.")]
    by_last = {name.rpartition(".")[2]: name for name in [*reversed(known), *inside]}
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_last[close[0]]}?"
    return "known keys are " + ", ".join(inside or [name for name in known if "." not in name])


def _look_up(raw: Any, key: str) -> Any:
    for part in key.split("."):
        if isinstance(raw, str) and part == "address":
            return raw
        if isinstance(raw, (list, tuple)) and part.isdecimal() and int(part) < len(raw):
            raw = raw[int(part)]
            continue
        if not isinstance(raw, dict) or part not in raw:
            return _MISSING
        raw = raw[part]
    return raw


def _shown(value: object) -> str:
    return "a table" if value == {} else _one_line(toml_value(value))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
