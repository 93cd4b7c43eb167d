"""What an experiment is written with: its sections, and types of values beyond plain ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator

from device_profiles.partition import ALLOWED, parse_scheme
from edge_runtime.errors import ConfigError

MOST = 1_000_000  # far beyond any use; catches slips such as a time in a count's place

_HOST_PORT = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def _text(allowed: str, fits: Callable[[str], bool]) -> AfterValidator:
    """A validator for texts; `allowed` completes "expected ..."."""

    def check(value: str) -> str:
        if not fits(value):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def _is_partition(value: str) -> bool:
    try:
        parse_scheme(value)
    except ConfigError:
        return False
    return True


def _is_address(value: str) -> bool:
    if value in ("auto", "mosquitto", "amqtt"):
        return True
    match = _HOST_PORT.fullmatch(value)
    return match is not None and 1 <= int(match[2]) <= 65535


def _experts_per_device(value: Any) -> int | tuple[int, ...]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items or any(type(item) is not int or item < 1 for item in items):
        raise ValueError("a whole number >= 1, or a list of such")
    return tuple(items) if isinstance(value, (list, tuple)) else items[0]


Name = Annotated[
    str,
    _text("1 to 64 letters, digits, '_', '.' or '-'", lambda value: bool(_NAME.fullmatch(value))),
]
FilePath = Annotated[str, _text("a path of printable characters", str.isprintable)]
Partition = Annotated[str, _text(ALLOWED, _is_partition)]
Address = Annotated[str, _text("auto, mosquitto, amqtt, or HOST:PORT", _is_address)]
ExpertsPerDevice = Annotated[int | tuple[int, ...], PlainValidator(_experts_per_device)]
Dataset = Literal["digits", "har", "cifar", "fashion"]


class Section(BaseModel):
    """Base of all sections: frozen, strict, no unknown keys, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )
