"""Records to bytes and back: msgpack maps, versioned, checked on arrival.

A record is a frozen dataclass. It is written as ``{"v": <version>, "t": <type>, **fields}``, a part
of it (a dataclass too) as the list of its fields. What arrives has exactly the fields of a known
type, with the right types and within the limits, or it is a `WireError`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Iterable
from typing import Any, get_args, get_origin, get_type_hints

import msgpack

from edge_runtime.errors import WireError


class Packing:
    """Packs records of some types.

    Their fields are str, bytes, bool, int (64 bits), float (finite), parts, and lists and dicts of
    these.
    """

    def __init__(
        self,
        version: int,
        types: Iterable[type],
        parts: Iterable[type],
        max_bytes: int,
        max_items: int,
        max_text: int,
    ) -> None:
        """Limits: `max_bytes` a record, `max_items` a list or dict, `max_text` characters a str."""
        self._version = version
        self._types = {cls.__name__.lower(): cls for cls in types}
        self._fields: dict[type, dict[str, Any]] = {
            cls: get_type_hints(cls) for cls in [*self._types.values(), *parts]
        }
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._max_text = max_text

    def pack(self, record: Any) -> bytes:
        """The bytes of a record of one of the types; `WireError` if they are too many.

        Text is cut at `max_text`, invalid Unicode becomes ``?``.
        """
        cls = type(record)
        fields = {name: self._plain(getattr(record, name)) for name in self._fields[cls]}
        packed: bytes = msgpack.packb(
            {"v": self._version, "t": cls.__name__.lower(), **fields}, unicode_errors="replace"
        )
        self._check_size(packed)
        return packed

    def unpack(self, payload: bytes) -> Any:
        """The record that these bytes are; `WireError` if they are none."""
        self._check_size(payload)
        try:
            # Checked by msgpack before it allocates: a few bytes can claim a long array, once per
            # level of a deep nesting. Extension types (timestamps too) are no part of a record.
            raw = msgpack.unpackb(
                payload,
                max_array_len=self._max_items,
                max_map_len=self._max_items,
                max_ext_len=0,
            )
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise WireError("malformed", f"not msgpack ({type(error).__name__})") from None
        if not isinstance(raw, dict):
            raise WireError("malformed", f"expected a map, got {type(raw).__name__}")
        version = raw.pop("v", None)
        if type(version) is not int or version != self._version:  # True == 1 == 1.0
            raise WireError("version", f"this side speaks version {self._version} of the protocol")
        name = raw.pop("t", None)
        if not isinstance(name, str) or name not in self._types:
            # A peer's value goes to our log: reprlib keeps it short, and bears deep nesting.
            raise WireError("unknown", f"no message type {reprlib.repr(name)}")
        return self._build(self._types[name], raw, name)

    def _check_size(self, packed: bytes) -> None:
        if len(packed) > self._max_bytes:
            raise WireError("oversized", f"at most {self._max_bytes} bytes, not {len(packed)}")

    def _plain(self, value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return [self._plain(getattr(value, name)) for name in self._fields[type(value)]]
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        return value[: self._max_text] if isinstance(value, str) else value

    def _build(self, cls: type, raw: dict[Any, Any], where: str) -> Any:
        hints = self._fields[cls]
        if raw.keys() != hints.keys():
            odd = reprlib.repr(sorted(map(repr, raw.keys() ^ hints.keys())))
            raise WireError("malformed", f"{where}: missing or unknown fields {odd}")
        return cls(
            **{
                name: self._check(raw[name], hint, f"{where}.{name}")
                for name, hint in hints.items()
            }
        )

    def _check(self, value: Any, hint: Any, where: str) -> Any:
        """`value` as the type `hint`, or `WireError` naming the field."""
        origin = get_origin(hint)
        if hint in self._fields:
            names = list(self._fields[hint])
            if not isinstance(value, list) or len(value) != len(names):
                raise WireError("malformed", f"{where}: expected {hint.__name__}")
            return self._build(hint, dict(zip(names, value, strict=True)), where)
        if origin is list:
            if not isinstance(value, list):
                raise WireError("malformed", f"{where}: expected a list, got {_name(value)}")
            return [self._check(item, get_args(hint)[0], where) for item in value]
        if origin is dict:
            if not isinstance(value, dict):
                raise WireError("malformed", f"{where}: expected a map, got {_name(value)}")
            key, item = get_args(hint)
            return {
                self._check(k, key, where): self._check(v, item, where) for k, v in value.items()
            }
        if hint is float and type(value) is int:
            value = float(value)
        if type(value) is not hint:
            raise WireError("malformed", f"{where} is {_name(value)}, not {hint.__name__}")
        if hint is float and not math.isfinite(value):
            raise WireError("not-finite", where)
        if hint is int and not -(2**63) <= value < 2**63:
            raise WireError("malformed", f"{where}: out of range")
        if hint is str and len(value) > self._max_text:
            raise WireError("malformed", f"{where}: longer than {self._max_text} characters")
        return value


def _name(value: Any) -> str:
    return type(value).__name__
