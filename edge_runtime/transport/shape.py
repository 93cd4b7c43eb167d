"""`Shape`: what an emulated link does to the bytes of a device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edge_runtime.errors import ConfigError

_FIELDS = {"up": "up_bps", "down": "down_bps", "delay": "delay_s", "loss": "loss", "seed": "seed"}


@dataclass(frozen=True)
class Shape:
    """Rates in bit/s of TCP payload, 0 for no limit; the delay one way, in seconds.

    `loss` is the share of packets that are lost, from 0 to below 1; `seed` makes it repeatable
    where it is ours to draw. `ConfigError` if a value is out of its range.
    """

    up_bps: float
    down_bps: float
    delay_s: float = 0.0
    loss: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, field in _FIELDS.items():
            value = getattr(self, field)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"shape of a link: expected {key} of 0 or more, not {value}")
        if self.loss >= 1:
            raise ConfigError(f"shape of a link: expected loss below 1, not {self.loss}")

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The inverse of `str`; what is not named is 0. `ConfigError` if it is not a shape."""
        values: dict[str, str] = {}
        for part in text.split(",") if text else ():
            key, equals, value = part.strip().partition("=")
            if not equals or key not in _FIELDS or key in values:
                raise ConfigError(
                    f"shape of a link {text!r}: expected each of {', '.join(_FIELDS)} at most once "
                    f"as KEY=NUMBER, with commas between, not {part!r}"
                )
            values[key] = value
        try:
            up, down, delay, loss = (
                float(values.get(key, 0)) for key in ("up", "down", "delay", "loss")
            )
            seed = int(values.get("seed", 0))
        except ValueError:
            raise ConfigError(
                f"shape of a link {text!r}: expected numbers, such as "
                "up=375000,down=300000,delay=0.05,loss=0.01,seed=3"
            ) from None
        return cls(up, down, delay, loss, seed)

    def __str__(self) -> str:
        values = {key: getattr(self, field) for key, field in _FIELDS.items()}
        return ",".join(
            f"{key}={_number(value)}"
            for key, value in values.items()
            if value or key in ("up", "down")
        )

    def scaled(self, time_scale: float) -> Shape:
        """The same link where time passes `time_scale` times as fast."""
        return replace(
            self,
            up_bps=self.up_bps * time_scale,
            down_bps=self.down_bps * time_scale,
            delay_s=self.delay_s / time_scale,
        )


def _number(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return str(int(value)) if value == int(value) else repr(value)
