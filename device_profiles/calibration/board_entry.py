"""This machine as an entry of the catalogue: what was measured, and what is left to fill in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psutil

from device_profiles.calibration.host_figures import HostFigures
from device_profiles.catalogue.board import ARCHITECTURES, BOARD_KEYS

CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
_MIB = 1024 * 1024
_SAME = {"arm64": "aarch64", "amd64": "x86_64", "armv7l": "armv7", "armv6l": "armv6"}


def entry_name(model: str) -> str:
    """A profile's name made from what a board calls itself."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-") or "board"


def entry_of(name: str, host: HostFigures, clock: Path = CLOCK) -> str:
    """NAME.toml for this machine; keys that nobody can measure here stand in comments."""
    memory = psutil.virtual_memory()
    source = f"flexmoe profiles calibrate on {host.cpu}"
    known: dict[str, tuple[float, str]] = {
        "cores": (host.cores, source),
        "ram_mib": (memory.total // _MIB, f"{source}: what the kernel has"),
        "memory_mib": (memory.available // _MIB, f"{source}: what was free then"),
        "integer_mips": (round(host.integer_mips), f"{source}: lzma, on 7-zip's scale"),
        "gemm_gflops": (round(host.gemm_gflops, 2), f"{source}: our kernels, {host.isa}"),
        "memory_mb_s": (round(host.memory_mb_s), f"{source}: copies of 32 MiB"),
    }
    if (clock_mhz := _clock_mhz(clock)) is not None:
        known["clock_mhz"] = (clock_mhz, f"{source}: cpufreq's cpuinfo_max_freq")
    lines = [
        f"# {name}.toml, by {source}.",
        "# What stands in comments could not be measured here: fill it in, with its source, and",
        "# check the file with: flexmoe profiles check FILE",
        "",
        f"title = {json.dumps(host.cpu, ensure_ascii=False)}",
        _architecture(host.architecture),
        '# link = ""  # its usual class of links: a name that flexmoe profiles list shows',
        "",
    ]
    for figure in BOARD_KEYS:
        lines.append(f"# {figure.about}")
        if figure.key in known:
            value, said = known[figure.key]
            lines += [f"[{figure.key}]", f"value = {value}"]
            lines.append(f"source = {json.dumps(said, ensure_ascii=False)}")
        else:
            lines += [f"# [{figure.key}]", "# value =", '# source = ""']
        lines.append("")
    return "\n".join(lines).rstrip()


def _architecture(machine: str) -> str:
    found = _SAME.get(machine.lower(), machine.lower())
    if found in ARCHITECTURES:
        return f'architecture = "{found}"'
    return f'# architecture = ""  # {machine} is none of {", ".join(ARCHITECTURES)}'


def _clock_mhz(clock: Path) -> float | None:
    try:
        return int(clock.read_text()) / 1000
    except (OSError, ValueError):
        return None
