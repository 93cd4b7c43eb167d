"""`flexmoe doctor`: what this host can emulate, and what a broker can take."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass

from broker_server.brokers import doctor
from broker_server.brokers.doctor import Diagnosis
from device_profiles.emulation.abilities import Abilities, find_abilities, lines
from edge_runtime.errors import BrokerError
from edge_runtime.transport.address import parse_address

DEFAULT_BROKER = "127.0.0.1:1883"

_WIDTHS = 18, 66


@dataclass(frozen=True)
class Findings:
    """`diagnosis` is None where no broker was asked for, and none answers."""

    abilities: Abilities
    diagnosis: Diagnosis | None

    @property
    def usable(self) -> bool:
        """Whether flexmoe can work with the broker, if there is one."""
        return self.diagnosis is None or self.diagnosis.usable


def examine(broker: str | None) -> Findings:
    """Look at this host, and at `broker`; `BrokerError` if one was named that does not answer."""
    address = parse_address(broker or DEFAULT_BROKER)
    abilities = find_abilities()
    try:
        return Findings(abilities, doctor.diagnose(*address))
    except BrokerError:
        if broker is not None:
            raise
        return Findings(abilities, None)


def to_text(findings: Findings) -> str:
    """Both as tables of at most 100 columns."""
    rows = [_row(*line) for line in lines(findings.abilities)]
    parts = ["emulation of boards and links on this host", *rows, ""]
    if findings.diagnosis is None:
        parts.append(
            f"broker: none answers at {DEFAULT_BROKER} (flexmoe run starts its own; name another "
            "with --broker)"
        )
    else:
        parts.append(doctor.to_text(findings.diagnosis))
    return "\n".join(parts)


def to_json(findings: Findings) -> str:
    """``emulation``: what can be enforced; the rest is of the broker, if there is one."""
    found = json.loads(doctor.to_json(findings.diagnosis)) if findings.diagnosis else {}
    emulation = {**asdict(findings.abilities), "lines": lines(findings.abilities)}
    return json.dumps({"emulation": emulation, **found}, indent=2)


def _row(what: str, how: str, verdict: str) -> str:
    first, second = _WIDTHS
    top, *more = textwrap.wrap(how, second)
    lines = [f"{what:{first}} {top:{second}} {verdict}".rstrip()]
    return "\n".join([*lines, *(f"{'':{first}} {line}" for line in more)])
