"""The options of `flexmoe device`."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from edge_runtime.errors import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """argparse, with one line for a wrong command line instead of the usage on several."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def device_parser() -> argparse.ArgumentParser:
    """The options of `flexmoe device`."""
    from edge_runtime.trainers import TRAINERS

    parser = OneLineParser(
        prog="flexmoe device",
        description="Run this machine as a device: train the experts that the server assigns, on "
        "the data in FILE, until the server says stop.",
    )
    parser.add_argument("--broker", required=True, metavar="HOST:PORT", help="the MQTT broker")
    parser.add_argument("--id", required=True, metavar="NAME", help="this device's name")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE.npz",
        type=Path,
        help="its own data: arrays x_train, y_train, x_test, y_test",
    )
    parser.add_argument(
        "--federation", default="default", metavar="NAME", help="which federation to join"
    )
    parser.add_argument(
        "--trainer",
        default="native",
        choices=list(TRAINERS),
        help="what runs the programs: our own runtime, or the stock one, which needs torch "
        "[default: native]",
    )
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="threads of a training step [default: the whole cores of the cgroup's quota, or 1]",
    )
    parser.add_argument(
        "--memory-mib",
        type=count,
        metavar="N",
        help="memory that training may use, MiB [default: what is free]",
    )
    parser.add_argument(
        "--shelf-mib",
        type=count,
        default=64,
        metavar="N",
        help="memory for the parts and programs that it holds, MiB; what codecs lost of its "
        "updates takes up to a quarter of that besides [default: 64]",
    )
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="keep programs here, so that each travels once, and large blobs while they come "
        "[default: devices/FEDERATION/NAME in "
        "$FLEXMOE_CACHE, else in flexmoe in the user's cache folder]",
    )
    cache.add_argument("--no-cache", action="store_true", help="keep no programs on disk")
    parser.add_argument(
        "--state",
        metavar="DIR",
        type=Path,
        help="keep a local gate and what codecs lost here, to survive a restart",
    )
    parser.add_argument(
        "--link",
        default="",
        metavar="CLASS",
        help="the class of its link, for the server's budgets",
    )
    parser.add_argument("--board", default="", metavar="NAME", help="what board this is")
    parser.add_argument("--verbose", action="store_true", help="log what happens on the way")
    emulated = parser.add_argument_group(
        "emulation", "how `flexmoe run` tells a device that it is an emulated board"
    )
    emulated.add_argument("--turns", type=Path, metavar="SOCKET", help="who gives it its turns")
    emulated.add_argument(
        "--shape", default="", metavar="TEXT", help="its link, as far as the kernel cannot emulate"
    )
    emulated.add_argument(
        "--shared-host",
        action="store_true",
        help="other devices run here too: this host's interfaces and sensors are not its own",
    )
    emulated.add_argument(
        "--time-scale",
        type=factor,
        default=1.0,
        metavar="S",
        help="seconds of life in a second here [default: 1]",
    )
    return parser


def count(text: str) -> int:
    """An option's whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def factor(text: str) -> float:
    """An option's number above 0."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")


def threads(text: str) -> int:
    """An option's number of threads that a trainer can have."""
    from edge_runtime.trainers import MAX_THREADS

    if count(text) > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_THREADS}, got {text}")
    return int(text)
