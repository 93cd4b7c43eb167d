"""Records to bytes and back: msgpack arrays, versioned, checked on arrival.

A record is a frozen dataclass. It is written as ``[version, type, *fields]``, the type as its
number in the list of types and the fields in their order; a part of it (a dataclass too) as the
array of its fields. Names would cost more bytes than what they name. What arrives has exactly the
fields of a known type, with the right types and within the limits, or it is a `WireError`.
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
        self._types = list(types)
        self._numbers = {cls: number for number, cls in enumerate(self._types)}
        self._fields: dict[type, dict[str, Any]] = {
            cls: get_type_hints(cls) for cls in [*self._types, *parts]
        }
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._max_text = max_text

    def pack(self, record: Any) -> bytes:
        """The bytes of a record of one of the types.

        `WireError` if they are too many, or a float is not finite. Text is cut at
        `max_text`, invalid Unicode becomes ``?``.
        """
        cls = type(record)
        fields = [self._plain(getattr(record, name)) for name in self._fields[cls]]
        packed: bytes = msgpack.packb(
            [self._version, self._numbers[cls], *fields], unicode_errors="replace"
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
        if not isinstance(raw, list) or len(raw) < 2:
            raise WireError("malformed", f"expected an array, got {type(raw).__name__}")
        version, number, *fields = raw
        if type(version) is not int or version != self._version:  # True == 1 == 1.0
            raise WireError("version", f"this side speaks version {self._version} of the protocol")
        if type(number) is not int or not 0 <= number < len(self._types):
            # A peer's value goes to our log: reprlib keeps it short, and bears deep nesting.
            raise WireError("unknown", f"no message type {reprlib.repr(number)}")
        cls = self._types[number]
        return self._build(cls, fields, cls.__name__.lower())

    def _check_size(self, packed: bytes) -> None:
        if len(packed) > self._max_bytes:
            raise WireError("oversized", f"at most {self._max_bytes} bytes, not {len(packed)}")

    def _plain(self, value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return [self._plain(getattr(value, name)) for name in self._fields[type(value)]]
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if isinstance(value, dict):
            return {self._plain(key): self._plain(item) for key, item in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            raise WireError("not-finite", "a message cannot carry NaN or infinity")
        return value[: self._max_text] if isinstance(value, str) else value

    def _build(self, cls: type, values: Any, where: str) -> Any:
        hints = self._fields[cls]
        if not isinstance(values, list) or len(values) != len(hints):
            count = len(values) if isinstance(values, list) else _name(values)
            raise WireError("malformed", f"{where}: expected {len(hints)} fields, got {count}")
        return cls(
            *(
                self._check(value, hint, f"{where}.{name}")
                for value, (name, hint) in zip(values, hints.items(), strict=True)
            )
        )

    def _check(self, value: Any, hint: Any, where: str) -> Any:
        """`value` as the type `hint`, or `WireError` naming the field."""
        origin = get_origin(hint)
        if hint in self._fields:
            return self._build(hint, value, where)
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
