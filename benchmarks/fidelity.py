"""How close do emulated boards and links come to what was asked for?

    python benchmarks/fidelity.py [--json] [--profile NAME]... [--seconds S] [--time-scale T]

For every board that fits this host, with its usual link, and for every other class of links with
one board: real control groups and network namespaces as `flexmoe run` makes them, and hogs in them.
NAME is a board, or BOARD+LINK. `work` and `train` are a device's two phases; a row with * was
disturbed by other load on this host: measure again when it is quiet. JSON is {NAME: {cpu_asked,
cpu_got, train_cpu_asked, train_cpu_got, memory_asked_mib, memory_got_mib, up_asked_bps, up_got_bps,
down_asked_bps, down_got_bps, enforcement, ...}}, null where nothing is enforced. Needs root, or
what `flexmoe doctor` says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import psutil

from device_profiles.calibration import calibration
from device_profiles.calibration.host_figures import HostFigures
from device_profiles.catalogue.profiles import boards, links
from device_profiles.emulation.abilities import find_abilities
from device_profiles.emulation.testbed import Testbed, Wanted
from device_profiles.fidelity import fidelity
from device_profiles.fidelity.fidelity import Fidelity
from device_profiles.fleet.fleet_plan import DevicePlan, plan_fleet
from edge_runtime.cgroup import usable_cores
from edge_runtime.errors import FlexmoeError

OTHER_LINKS_WITH = "pi-zero-2w"
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Spec:
    """One device of a board and a link, always there."""

    profile: str
    link: str = ""
    count: int = 1
    memory_mib: int = 0
    threads: int = 1
    availability: str = "always"
    leave: Literal["goodbye", "cut"] = "goodbye"


def default_specs() -> dict[str, Spec]:
    """Every board with its usual link, and the links that no board of them has, by name."""
    known = [board for board in boards().values() if board.supported]
    specs = {board.name: Spec(board.name) for board in known}
    used = {board.link for board in known}
    for link in links():
        if link not in used:
            specs[f"{OTHER_LINKS_WITH}+{link}"] = Spec(OTHER_LINKS_WITH, link)
    return specs


def named_specs(names: Sequence[str]) -> dict[str, Spec]:
    """From ``BOARD`` or ``BOARD+LINK``."""
    parts = {name: name.partition("+") for name in names}
    return {name: Spec(board, link) for name, (board, _, link) in parts.items()}


def plans_of(
    specs: Mapping[str, Spec], host: HostFigures, time_scale: float, strict: bool
) -> dict[str, DevicePlan]:
    """What fits this host; the rest is an error if `strict`, else told on stderr."""
    memory_mib = int(psutil.virtual_memory().total / _MIB)
    plans: dict[str, DevicePlan] = {}
    for name, spec in specs.items():
        device = f"device-{len(plans):02d}"
        try:
            (plans[name],) = plan_fleet([spec], [device], host, "phases", time_scale, memory_mib)
        except FlexmoeError as error:
            if strict:
                raise
            print(f"left out: {error}", file=sys.stderr)
    return plans


def measure(
    plans: Mapping[str, DevicePlan], host: HostFigures, time_scale: float, seconds: float
) -> dict[str, Fidelity]:
    """All of them in one testbed, by name."""
    wanted = {
        plan.name: Wanted(plan.quotas, plan.memory_mib * _MIB, plan.shape)
        for plan in plans.values()
    }
    with Testbed(wanted, find_abilities(), usable_cores(), time_scale) as testbed:
        rows = fidelity.measure(list(plans.values()), testbed, seconds)
    return dict(zip(plans, rows, strict=True))


def to_text(rows: Mapping[str, Fidelity]) -> str:
    """Asked, got and the difference in percent, a line for each thing that is enforced."""
    lines = [f"{'profile':24}{'':12}{'asked':>12}{'got':>12}{'off':>9}"]
    for name, row in rows.items():
        things = (
            ("work, cores", row.cpu_asked, row.cpu_got, "{:.4f}"),
            ("train, cores", row.train_cpu_asked, row.train_cpu_got, "{:.4f}"),
            ("memory, MiB", row.memory_asked_mib, row.memory_got_mib, "{:.3f}"),
            ("up, kbit/s", _kilo(row.up_asked_bps), _kilo(row.up_got_bps), "{:.2f}"),
            ("down, kbit/s", _kilo(row.down_asked_bps), _kilo(row.down_got_bps), "{:.2f}"),
        )
        label = name + "*" * row.disturbed
        for what, asked, got, form in things:
            if asked is None or got is None:
                lines.append(f"{label:24}{what:12}{'-':>12}{'-':>12}{'-':>9}")
            else:
                off = f"{100 * (got / asked - 1):+.2f} %"
                cells = f"{form.format(asked):>12}{form.format(got):>12}{off:>9}"
                lines.append(f"{label:24}{what:12}{cells}")
            label = ""
        lines.append(f"{'':24}{row.enforcement}")
    if any(row.disturbed for row in rows.values()):
        lines.append("*: disturbed by other load on this host: measure again when it is quiet")
    return "\n".join(lines)


def _kilo(value: float | None) -> float | None:
    return value / 1000 if value is not None else None


def main() -> int:
    parser = argparse.ArgumentParser(description="How close do emulated boards and links come?")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--profile", action="append", metavar="NAME", help="BOARD or BOARD+LINK")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="[default: 4]")
    parser.add_argument("--time-scale", type=float, default=1.0, metavar="T", help="[default: 1]")
    options = parser.parse_args()
    if not options.seconds > 0:
        parser.error("--seconds: expected a number above 0")
    specs = named_specs(options.profile) if options.profile else default_specs()
    try:
        host = calibration.of_this_host()
        plans = plans_of(specs, host, options.time_scale, bool(options.profile))
        rows = measure(plans, host, options.time_scale, options.seconds)
    except FlexmoeError as error:
        print(f"fidelity: error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({name: asdict(row) for name, row in rows.items()}, indent=1))
    else:
        print(to_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
