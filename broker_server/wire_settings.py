"""The section of an experiment that says how its bytes travel."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from broker_server.field_types import MOST, Section
from device_profiles.catalogue.profiles import LINKS
from edge_runtime.codec import PRESETS, Preset, parse_coding
from edge_runtime.errors import ConfigError
from edge_runtime.protocol.topics import valid_name

EVERY_DEVICE = "all"
"""In a table of budgets: whoever is not in it by its name or its link's class."""

_MOST_BYTES = 1 << 40
_CLASSES = ", ".join(LINKS)
_NAMES = f'names of devices, classes of links ({_CLASSES}) or "{EVERY_DEVICE}"'
_BUDGETS = f"a whole number of bytes from 0 to 2^40, or a table of such by {_NAMES}"
_ALLOWED = "a codec such as raw, fp16, int8, int4 or topk(0.05), each with or without +zip"


def _codec(spec: str) -> str:
    try:
        return spec and parse_coding(spec).spec
    except ConfigError:
        raise ValueError(_ALLOWED) from None


def _links(value: Any) -> str | tuple[str, ...]:
    names = list(value) if isinstance(value, (list, tuple)) else [value]
    if not names or any(name != "" and name not in LINKS for name in names):
        raise ValueError(f"a class of links ({_CLASSES}) or nothing, or a list of such")
    return tuple(names) if isinstance(value, (list, tuple)) else names[0]


def _budgets(value: Any) -> int | dict[str, int]:
    table = value if isinstance(value, dict) else {EVERY_DEVICE: value}
    if any(type(size) is not int or not 0 <= size <= _MOST_BYTES for size in table.values()):
        raise ValueError(_BUDGETS)
    meant = {_letters(name): name for name in LINKS}
    for name in table:
        if not isinstance(name, str) or not valid_name(name):
            raise ValueError(f"{_NAMES} (no device can be called {name!r})")
        if name not in LINKS and (link := meant.get(_letters(name))):
            raise ValueError(f"{_NAMES} ({link}, not {name})")
    return dict(value) if isinstance(value, dict) else table[EVERY_DEVICE]


def _letters(name: str) -> str:
    """What is left of a name however it is written: ``NB_IoT`` is ``nbiot``."""
    return "".join(filter(str.isalnum, name)).lower()


CodecSpec = Annotated[str, AfterValidator(_codec)]
"""A codec's spec, or empty."""
LinkNames = Annotated[str | tuple[str, ...], PlainValidator(_links)]
BytesPerRound = Annotated[int | dict[str, int], PlainValidator(_budgets)]


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
    links: LinkNames = Field(
        default="",
        description="Class of the links of the devices that `flexmoe run` starts, or nothing: "
        f"{_CLASSES}. A list is dealt out to the devices in order, again from its start when it "
        "ends.",
    )
    bytes_per_round: BytesPerRound = Field(
        default=0,
        description="Bytes that a device's link may carry in a round, both ways, whole MQTT "
        "packets; 0 is no budget. A number for all devices, or a table by device, class of links "
        f'or "{EVERY_DEVICE}", such as {{ nb-iot = 20000, device-03 = 5000 }}; a device\'s own '
        "name stands before its link's class.",
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

    def link_of(self, device: int) -> str:
        """The class of the `device`-th device's link, counted from 0, or empty."""
        return self.links if isinstance(self.links, str) else self.links[device % len(self.links)]

    def budget_of(self, client: str, link: str) -> int:
        """The bytes a round of a client whose link is of class `link`; 0 if it has no budget."""
        if isinstance(self.bytes_per_round, int):
            return self.bytes_per_round
        names = (client, link, EVERY_DEVICE)
        return next((self.bytes_per_round[n] for n in names if n in self.bytes_per_round), 0)
