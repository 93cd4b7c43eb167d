"""`flexmoe profiles`: boards and links, own ones too, and what stands for them on this host."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import psutil

from device_profiles.calibration import board_entry, board_quotas, calibration
from device_profiles.catalogue import profile_text
from device_profiles.catalogue.board import Board
from device_profiles.catalogue.link_class import LINK_KEYS, LinkClass
from device_profiles.catalogue.profiles import (
    boards,
    find_board,
    find_link,
    links,
    to_toml,
)
from edge_runtime.device_options import OneLineParser
from edge_runtime.errors import ConfigError, EmulationError
from edge_runtime.protocol.topics import bad_name, valid_name

_MIB = 1024 * 1024
_SURE_S = 2.0  # what was measured for so long, runs go by from then on
_KEY = re.compile(r"^\s*\[?\s*(\w+)", re.MULTILINE)


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns 0, or raises a `FlexmoeError`."""
    options = profiles_parser().parse_args(arguments)
    text = options.command(options)
    print(text)
    return 0


def profiles_parser() -> argparse.ArgumentParser:
    """The options of `flexmoe profiles`."""
    parser = OneLineParser(
        prog="flexmoe profiles", description="Profiles of boards and links, and emulating them."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("list", help="the boards and classes of links that are known").set_defaults(
        command=_list
    )
    show = commands.add_parser("show", help="one of them, each figure with its source")
    show.add_argument("name", metavar="NAME", help="a name, or a path ending in .toml")
    show.add_argument("--toml", action="store_true", help="as a file, to start one of your own")
    show.set_defaults(command=_show)
    check = commands.add_parser("check", help="whether a profile of your own is sound")
    check.add_argument("file", metavar="FILE.toml", type=Path)
    check.set_defaults(command=_check)
    calibrate = commands.add_parser(
        "calibrate",
        help="measure this host, and what stands for each board here",
        description="Measure this host, and print the quota that stands for one core of each board "
        "here. On a board it prints an entry for the catalogue too, to contribute.",
    )
    calibrate.add_argument("--json", action="store_true", help="print one JSON object")
    calibrate.add_argument(
        "--seconds", type=_seconds, default=2.0, metavar="S", help="how long, about [default: 2]"
    )
    calibrate.add_argument(
        "--entry", metavar="NAME", help="print an entry for the catalogue of this name"
    )
    calibrate.set_defaults(command=_calibrate)
    clean = commands.add_parser(
        "clean", help="remove what emulated runs that crashed have left on this host"
    )
    clean.set_defaults(command=_clean)
    return parser


def _list(options: argparse.Namespace) -> str:
    return profile_text.listing(boards(), links())


def _show(options: argparse.Namespace) -> str:
    profile = _find(options.name)
    if options.toml:
        return to_toml(profile).rstrip()
    return _described(profile)


def _check(options: argparse.Namespace) -> str:
    profile = _read(options.file)
    if isinstance(profile, Board):
        try:
            find_link(profile.link)
        except ConfigError as error:
            raise ConfigError(f"{options.file}: link: {error}") from None
    kind = "board" if isinstance(profile, Board) else "class of links"
    return f"{_described(profile)}\n\n{options.file}: a sound {kind}"


def _calibrate(options: argparse.Namespace) -> str:
    if options.entry is not None and not valid_name(options.entry):
        raise ConfigError(bad_name("board", options.entry))
    host = calibration.measure(options.seconds)
    if options.seconds >= _SURE_S:
        calibration.keep(host)
    memory_mib = psutil.virtual_memory().total / _MIB
    rows = [board_quotas.quotas_of(board, host, memory_mib) for board in boards().values()]
    model = calibration.board_model()
    name = options.entry or (board_entry.entry_name(model) if model else None)
    entry = board_entry.entry_of(name, host) if name else None
    if options.json:
        found = {
            "host": host.to_record(),
            "boards": {row.board.name: row.to_json() for row in rows},
        }
        return json.dumps(found | ({"entry": entry} if entry else {}))
    text = board_quotas.to_text(host, rows)
    if options.seconds >= _SURE_S:
        text += "\nkept: runs on this host go by these figures from now on"
    return f"{text}\n\n{entry}" if entry else text


def _clean(options: argparse.Namespace) -> str:
    from device_profiles.emulation.belongings import find_leftovers

    lines: list[str] = []
    left: list[str] = []
    for belongings in find_leftovers():
        left += belongings.remove_all()
        lines.append(f"removed what the run {belongings.run} had left")
    if left:
        raise EmulationError(f"cannot be removed: {'; '.join(left)}; try again as root")
    return "\n".join(lines) or "nothing was left behind"


def _described(profile: Board | LinkClass) -> str:
    if isinstance(profile, Board):
        return profile_text.describe(profile)
    return profile_text.describe_link(profile)


def _find(name: str) -> Board | LinkClass:
    """The board or class of links of this name or path."""
    if name.endswith(".toml"):
        return _read(Path(name))
    known = [*boards(), *links()]
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see flexmoe profiles list"
        raise ConfigError(f"{name!r}: no such board or class of links; {hint}")
    return find_link(name) if name in links() else find_board(name)


def _read(file: Path) -> Board | LinkClass:
    """What is in a file: a class of links if it has a key of one, else a board."""
    if file.suffix != ".toml":
        raise ConfigError(f"{file}: expected a profile, a file whose name ends in .toml")
    try:
        text = file.read_text(errors="replace")
    except OSError:
        text = ""  # whoever reads it next says why it cannot be read
    is_link = not set(_KEY.findall(text)).isdisjoint(key.key for key in LINK_KEYS)
    return find_link(str(file)) if is_link else find_board(str(file))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, at most 3600, got {text!r}")
    return seconds
