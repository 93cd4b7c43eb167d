"""The section of an experiment that says how its bytes travel."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from broker_server.field_types import MOST, Section
from edge_runtime.codec import PRESETS, Preset, parse_coding
from edge_runtime.errors import ConfigError

_ALLOWED = "a codec such as raw, fp16, int8, int4 or topk(0.05), each with or without +zip"


def _codec(spec: str) -> str:
    try:
        return spec and parse_coding(spec).spec
    except ConfigError:
        raise ValueError(_ALLOWED) from None


CodecSpec = Annotated[str, AfterValidator(_codec)]
"""A codec's spec, or empty."""


class Wire(Section):
    """How weights travel: what may be lost on the way, and what it may cost."""

    preset: Literal["lossless", "default", "narrow"] = Field(
        default="default",
        description="lossless: every bit arrives; default: small at the same accuracy; narrow: for "
        "links that carry next to nothing.",
    )
    uplink: CodecSpec = Field(
        default="",
        description="Codec of updates, in place of the preset's: raw, fp16, int8, int4 or "
        "topk(share), each with or without +zip, or a codec of your own.",
    )
    downlink: CodecSpec = Field(
        default="", description="Codec of changes of the model, in place of the preset's."
    )
    whole: CodecSpec = Field(
        default="",
        description="Codec of the whole parts that a run begins with, in place of the preset's.",
    )
    whole_every: int = Field(
        default=0,
        ge=0,
        le=MOST,
        description="Every so many rounds the parts that changed are sent whole, without loss; 0: "
        "only to devices for which that is less than the changes that they lack.",
    )

    @property
    def codings(self) -> Preset:
        """The codecs' specs: those of the preset where no other is given."""
        preset = PRESETS[self.preset]
        return Preset(
            uplink=self.uplink or preset.uplink,
            downlink=self.downlink or preset.downlink,
            whole=self.whole or preset.whole,
        )
