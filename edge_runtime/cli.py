"""The command `flexmoe`: device, bench, profiles in a base install, the rest with the extra."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from edge_runtime import __version__
from edge_runtime.device_options import OneLineParser, count, device_parser, threads
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
        if arguments[:1] == ["profiles"]:
            return run_profiles(arguments[1:])
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
            print("flexmoe profiles: boards and links, and what stands for them on this machine.")
            print("The server's commands need: pip install 'flexmoe[server]'")
            return 0
        raise ConfigError(
            f"the server's commands need {error.name}, which is not installed; "
            "install them with: pip install 'flexmoe[server]' (`flexmoe device` works without)"
        ) from None


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
    from edge_runtime.interface import is_loopback
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
    from edge_runtime.telemetry import Telemetry
    from edge_runtime.trainers import make_trainer
    from edge_runtime.transport.address import parse_address
    from edge_runtime.transport.mqtt import MqttLink
    from edge_runtime.turn import NoTurn, SocketTurn
    from edge_runtime.unfinished import Unfinished

    host, port = parse_address(options.broker)
    names = {"device": options.id, "federation": options.federation}
    names |= {"link": options.link or "-", "board": options.board or "-"}
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
    emulated = bool(options.turns or options.shape or options.time_scale != 1.0)
    own_interface = not (options.shared_host or is_loopback(host))
    own_sensors = not (options.shared_host or emulated)
    telemetry = Telemetry(options.time_scale, own_interface, own_sensors)
    turns = SocketTurn(options.turns, options.id) if options.turns else NoTurn()
    with ExitStack() as closing:
        closing.callback(turns.close)
        if options.shape:
            host, port = _open_relay(closing, host, port, options.shape)
        link = MqttLink(host, port, device_id(options.federation, options.id), will)
        closing.callback(link.close)
        mailbox = DeviceMailbox(link, options.federation, options.id, Ledger())
        gate = LocalGate(_own_file(options, "gate"))
        residuals = Residuals(_own_file(options, "residual"), shelf_bytes // 4)
        agent = Agent(
            mailbox,
            shard,
            trainer,
            contents,
            gate,
            residuals,
            options.link,
            memory,
            board=options.board,
            telemetry=telemetry,
            turns=turns,
        )
        try:
            reason = agent.live()
        except KeyboardInterrupt:
            agent.leave("interrupted")
            raise
    print(f"{options.id}: {reason}")
    return 0


def _open_relay(closing: ExitStack, host: str, port: int, shape: str) -> tuple[str, int]:
    """Where the broker is reached through a link of this shape."""
    from edge_runtime.transport.relay import Relay
    from edge_runtime.transport.shape import Shape

    relay = Relay(host, port, Shape.parse(shape))
    closing.callback(relay.close)
    return relay.host, relay.port


def _own_file(options: argparse.Namespace, what: str) -> Path | None:
    return options.state / options.federation / f"{options.id}.{what}" if options.state else None


def bench_parser() -> argparse.ArgumentParser:
    """The options of `flexmoe bench`, which has `device` only."""
    from edge_runtime.bench_step import MODELS

    parser = OneLineParser(prog="flexmoe bench", description="How fast this machine is.")
    device = parser.add_subparsers(metavar="device", required=True).add_parser(
        "device",
        help="what a training step costs on this machine",
        description="What a training step costs on this machine, beside PyTorch and the stock "
        "ExecuTorch runtime where they are installed.",
    )
    device.add_argument("--model", choices=MODELS, action="append", help="[default: all]")
    device.add_argument(
        "--k", type=count, default=2, metavar="N", help="experts of the subset model [default: 2]"
    )
    device.add_argument(
        "--batch", type=count, default=32, metavar="N", help="samples a step [default: 32]"
    )
    device.add_argument(
        "--threads", type=threads, default=1, metavar="N", help="threads of a step [default: 1]"
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


def run_profiles(arguments: Sequence[str]) -> int:
    """`flexmoe profiles`, which needs no server extra: returns 0 when it is done."""
    command = importlib.import_module("device_profiles.profiles_command")
    code: int = command.run(arguments)
    return code


def _interrupt_again(lost: UnraisableHookArgs) -> None:
    """An interrupt in a destructor is lost to Python: let it come a moment later, outside."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    else:
        sys.__unraisablehook__(lost)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
