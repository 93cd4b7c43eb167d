"""An experiment as TOML, every key written out and explained."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping

from pydantic.fields import FieldInfo

from broker_server.experiment import Experiment
from broker_server.field_types import Section
from broker_server.fleet_settings import Fleet

LISTED: Mapping[str, type[Section]] = {"fleet": Fleet}
"""Keys that are lists of tables: as `[[fleet]]` in a file, as `fleet.0.count` in an override."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def to_toml(experiment: Experiment) -> str:
    """The experiment as TOML, every key with its description; `load_experiment` reads it back."""
    lines = [f"# flexmoe experiment {experiment.name}, with every key written out.", ""]
    tables: list[str] = []
    for name in Experiment.model_fields:
        value = getattr(experiment, name)
        if isinstance(value, Section):
            tables += _table(f"[{name}]", value)
        elif name in LISTED:
            tables += [line for item in value for line in _table(f"[[{name}]]", item)]
        else:
            lines += _entry(name, Experiment.model_fields[name], value)
    return "\n".join([*lines, *tables]) + "\n"


def _table(head: str, section: Section) -> list[str]:
    lines = ["", f"# {type(section).__doc__}", head]
    for key, field in type(section).model_fields.items():
        lines += _entry(key, field, getattr(section, key))
    return lines


def _entry(key: str, field: FieldInfo, value: object) -> list[str]:
    comment = textwrap.wrap(field.description or "", width=96)
    return [*(f"# {line}" for line in comment), f"{key} = {toml_value(value)}"]


def toml_value(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        items = [f"{_toml_key(key)} = {toml_value(item)}" for key, item in value.items()]
        return f"{{ {', '.join(items)} }}" if items else "{}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    return str(value)


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
