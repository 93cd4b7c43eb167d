"""The command `flexmoe`: `device` and `bench` in a base install, the rest with the server extra."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from edge_runtime import __version__
from edge_runtime.errors import ConfigError, FlexmoeError
from edge_runtime.spare_imports import spare_imports

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C.

    None: those of this process, which is then only for this command.
    """
    own_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # `kill` ends all that runs here as Ctrl-C does: nothing may be left behind.
        signal.signal(signal.SIGTERM, _interrupt)
        if own_process:
            signal.signal(signal.SIGALRM, _interrupt)
            sys.unraisablehook = _interrupt_again
        if arguments == ["--version"]:
            print(f"flexmoe {__version__}")
            return 0
        if arguments[:1] == ["device"]:
            if own_process:
                _spare_memory()
            return run_device(arguments[1:])
        if arguments[:1] == ["bench"]:
            return run_bench(arguments[1:])
        return _run_server_command(arguments)
    except FlexmoeError as error:
        print(f"flexmoe: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (KeyboardInterrupt, ImportError) as error:
        # The import of a native module, when interrupted, fails with an error of its own.
        if not _caused_by_interrupt(error):
            raise
        # All is ended and told; an impatient user must not see the interpreter's own end fail.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("flexmoe: interrupted", file=sys.stderr)
        return INTERRUPTED


def _caused_by_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def _run_server_command(arguments: list[str]) -> int:
    try:
        server = importlib.import_module("broker_server.cli")
        code: int = server.main(arguments)
        return code
    except ModuleNotFoundError as error:
        if arguments in ([], ["--help"], ["-h"]):
            print("flexmoe device: run this machine as a device (flexmoe device --help).")
            print("flexmoe bench device: how fast this machine trains.")
            print("The server's commands need: pip install 'flexmoe[server]'")
            return 0
        raise ConfigError(
            f"the server's commands need {error.name}, which is not installed; "
            "install them with: pip install 'flexmoe[server]' (`flexmoe device` works without)"
        ) from None


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for a wrong command line instead of the usage on several."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def device_parser() -> argparse.ArgumentParser:
    """The options of `flexmoe device`."""
    from edge_runtime.trainers import TRAINERS

    parser = _Parser(
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
        type=_threads,
        metavar="N",
        help="threads of a training step [default: the whole cores of the cgroup's quota, or 1]",
    )
    parser.add_argument(
        "--memory-mib",
        type=_count,
        metavar="N",
        help="memory that training may use, MiB [default: what is free]",
    )
    parser.add_argument(
        "--shelf-mib",
        type=_count,
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
    parser.add_argument("--verbose", action="store_true", help="log what happens on the way")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _threads(text: str) -> int:
    from edge_runtime.trainers import MAX_THREADS

    if _count(text) > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_THREADS}, got {text}")
    return int(text)


def _spare_memory() -> None:
    """Before anything else is imported, in a process that is a device and nothing else."""
    # numpy's OpenBLAS starts a thread for each core when it is loaded, with memory for each.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    spare_imports()


def run_device(arguments: Sequence[str]) -> int:
    """`flexmoe device`: returns 0 when the server ended the run."""
    options = device_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )

    from edge_runtime.agent import Agent
    from edge_runtime.contents import Contents
    from edge_runtime.local_gate import LocalGate
    from edge_runtime.partial_files import PartialFiles
    from edge_runtime.program_cache import ProgramCache, default_folder
    from edge_runtime.protocol.blob import BlobShelf
    from edge_runtime.protocol.ledger import Ledger
    from edge_runtime.protocol.mailbox import DeviceMailbox
    from edge_runtime.protocol.messages import LAST_WILL, Gone, pack
    from edge_runtime.protocol.topics import bad_name, device_id, up_topic, valid_name
    from edge_runtime.residual import Residuals
    from edge_runtime.shard import Shard
    from edge_runtime.trainers import make_trainer
    from edge_runtime.transport.address import parse_address
    from edge_runtime.transport.mqtt import MqttLink
    from edge_runtime.unfinished import Unfinished

    host, port = parse_address(options.broker)
    names = {"device": options.id, "federation": options.federation, "link": options.link or "-"}
    for what, name in names.items():
        if not valid_name(name):
            raise ConfigError(bad_name(what, name))
    shard = Shard.load(options.data)
    folder = options.cache or default_folder(options.federation, options.id)
    programs = None if options.no_cache else ProgramCache(folder)
    shelf_bytes = options.shelf_mib * 1024 * 1024
    partials = None if options.no_cache else PartialFiles(folder / "partial", shelf_bytes)
    contents = Contents(BlobShelf(shelf_bytes), programs, Unfinished(partials))
    trainer = make_trainer(options.trainer, options.threads)
    memory = options.memory_mib * 1024 * 1024 if options.memory_mib else None
    will = up_topic(options.federation, options.id), pack(Gone(LAST_WILL))
    link = MqttLink(host, port, device_id(options.federation, options.id), will)
    try:
        mailbox = DeviceMailbox(link, options.federation, options.id, Ledger())
        gate = LocalGate(_own_file(options, "gate"))
        residuals = Residuals(_own_file(options, "residual"), shelf_bytes // 4)
        agent = Agent(mailbox, shard, trainer, contents, gate, residuals, options.link, memory)
        try:
            reason = agent.live()
        except KeyboardInterrupt:
            agent.leave("interrupted")
            raise
    finally:
        link.close()
    print(f"{options.id}: {reason}")
    return 0


def _own_file(options: argparse.Namespace, what: str) -> Path | None:
    return options.state / options.federation / f"{options.id}.{what}" if options.state else None


def bench_parser() -> argparse.ArgumentParser:
    """The options of `flexmoe bench`, which has `device` only."""
    from edge_runtime.bench_step import MODELS

    parser = _Parser(prog="flexmoe bench", description="How fast this machine is.")
    device = parser.add_subparsers(metavar="device", required=True).add_parser(
        "device",
        help="what a training step costs on this machine",
        description="What a training step costs on this machine, beside PyTorch and the stock "
        "ExecuTorch runtime where they are installed.",
    )
    device.add_argument("--model", choices=MODELS, action="append", help="[default: all]")
    device.add_argument(
        "--k", type=_count, default=2, metavar="N", help="experts of the subset model [default: 2]"
    )
    device.add_argument(
        "--batch", type=_count, default=32, metavar="N", help="samples a step [default: 32]"
    )
    device.add_argument(
        "--threads", type=_threads, default=1, metavar="N", help="threads of a step [default: 1]"
    )
    device.add_argument("--programs", type=Path, metavar="DIR", help="the folder of program files")
    device.add_argument(
        "--json", action="store_true", help="print one JSON object (of several models: by name)"
    )
    return parser


def run_bench(arguments: Sequence[str]) -> int:
    """`flexmoe bench device`: returns 0 when the table is printed."""
    options = bench_parser().parse_args(arguments)

    from edge_runtime import bench
    from edge_runtime.bench_step import MODELS

    models = options.model or MODELS
    sizes = options.k, options.batch, options.threads
    print(bench.report(models, *sizes, options.programs, options.json))
    return 0


def _interrupt_again(lost: UnraisableHookArgs) -> None:
    """An interrupt in a destructor is lost to Python: let it come a moment later, outside."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    else:
        sys.__unraisablehook__(lost)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
