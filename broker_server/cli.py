"""The server's commands: run, server, broker, data, report, bytes, programs, assign, doctor.

`device` and `bench` are passed on.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_runtime.cli import INTERRUPTED, run_bench, run_device
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from broker_server.console import Console
    from broker_server.experiment import Experiment

app = typer.Typer(
    name="flexmoe",
    help="Federated Mixture-of-Experts training on small devices, over MQTT.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# click's `UsageError`, whatever typer's version: newer ones carry a click of their own inside, and
# export only subclasses of it.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where the run goes [default: runs/NAME-TIMESTAMP]."),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Short for --set seed=N.")]
Rounds = Annotated[int | None, typer.Option(metavar="N", help="Short for --set rounds=N.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in train.epochs=3."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code; usage errors become `ConfigError`."""
    try:
        code = app(arguments or ["--help"], prog_name="flexmoe", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "flexmoe"
        message = error.format_message().rstrip(".")
        raise ConfigError(f"{message} (see {command} --help)") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    if code == INTERRUPTED:  # what newer typers make of a KeyboardInterrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


@app.command()
def run(
    experiment: ExperimentFile,
    out: Out = None,
    seed: Seed = None,
    rounds: Rounds = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Broker, server and a fleet of device processes on this machine, then a report."""
    loaded = _load(experiment, seed, rounds, set_)

    from broker_server.run import run_experiment

    with _console() as console:
        run_experiment(loaded, _directory(loaded.name, out, resume), [console], resume)


@app.command()
def server(
    experiment: ExperimentFile,
    broker: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The broker [default: the experiment's]."),
    ] = None,
    out: Out = None,
    seed: Seed = None,
    rounds: Rounds = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """The balancing server alone: its devices are started elsewhere, by `flexmoe device`."""
    loaded = _load(experiment, seed, rounds, set_)

    from broker_server.broker import open_broker
    from broker_server.host import Host
    from broker_server.server import open_store, serve
    from device_profiles import datasets

    directory = _directory(loaded.name, out, resume)
    dataset = datasets.load(loaded.data.dataset, loaded.data.path or None)
    address = broker or loaded.broker.address
    with (
        open_store(loaded, directory, resume) as store,
        open_broker(address, loaded.broker.port or None, directory / "log") as found,
        _console() as console,
    ):
        print(f"server at broker {found.host}:{found.port}, federation {loaded.broker.federation}")
        serve(loaded, dataset, Host(found), store, [console])


@app.command()
def broker(
    host: Annotated[
        str, typer.Option(help="Interface; 0.0.0.0 lets other machines connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 1883,
    kind: Annotated[str, typer.Option(help="auto, mosquitto or amqtt.")] = "auto",
) -> None:
    """An MQTT broker, until Ctrl-C."""
    from broker_server.broker import serve

    serve(host, port, kind)


@app.command()
def data(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the shards go.")],
    seed: Seed = None,
    set_: Set = None,
) -> None:
    """Write each device's shard as DIR/NAME.npz, to copy to the devices."""
    loaded = _load(experiment, seed, None, set_)

    from device_profiles import datasets
    from device_profiles.shards import make_shards, write_shards

    dataset = datasets.load(loaded.data.dataset, loaded.data.path or None)
    settings = loaded.data
    shards = make_shards(
        dataset, settings.devices, settings.partition, loaded.seed, settings.test_fraction
    )
    for name, path in write_shards(shards, out).items():
        shard = shards[name]
        print(f"{path}: {shard.samples} training, {shard.test_samples} test samples")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a run.")],
) -> None:
    """Print a run's tables again from its store."""
    from broker_server.console import replay
    from broker_server.store import Store

    with Store.open(directory) as store:
        replay(store.records(), store.facts(), directory, store.agreement())


@app.command("bytes")
def bytes_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a run.")],
    by: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="One table: round, kind, client or expert."),
    ] = None,
    links: Annotated[
        bool, typer.Option("--links", help="Print where the figures of links are from.")
    ] = False,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write rows instead, as CSV; - prints them.")
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write rows instead (needs pyarrow).")
    ] = None,
) -> None:
    """Where a run's bytes went, while it runs too: by round, kind, device and expert."""
    from broker_server import bytes_command

    if csv is not None:
        bytes_command.write_csv(directory, csv)
    if parquet is not None:
        bytes_command.write_parquet(directory, parquet)
    if csv is None and parquet is None:
        bytes_command.show(directory, by, links)


@app.command()
def programs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the programs go.")],
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A reference model [default: all].")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Experts of the subset model.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 32,
) -> None:
    """Write programs for `flexmoe bench device`, to copy to a device."""
    from edge_runtime.bench_step import MODELS
    from model_export.bench import export_programs

    unknown = sorted(set(model or ()) - set(MODELS))
    if unknown:
        raise ConfigError(f"--model {unknown[0]}: expected one of {', '.join(MODELS)}")
    try:
        export_programs(directory, model or MODELS, k, batch)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from None
    print(f"the programs are in {directory}")


@app.command()
def assign(
    quality: Annotated[
        Path, typer.Option(metavar="Q.npy", help="How well each expert fits, [clients, experts].")
    ],
    samples: Annotated[
        str, typer.Option(metavar="n.npy|N", help="Each client's samples, [clients], or one N.")
    ],
    capacity: Annotated[
        str, typer.Option(metavar="k.npy|K", help="Each client's experts, [clients], or one K.")
    ],
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="flex_moe, desirability, greedy, random, rolling, full or fixed.",
        ),
    ] = "flex_moe",
    delta: Annotated[
        float, typer.Option(help="Tolerance of the load bounds, as a fraction of the fair share.")
    ] = 0.02,
    grain: Annotated[
        float,
        typer.Option(help="The least tolerance, in samples of a mean client; 0: --delta alone."),
    ] = 0.5,
    solver: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of flex_moe: auto, exact or prices [default: auto]."),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(metavar="H.npy", help="The experts' loads before, [experts] [default: 0]."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Breaks ties.")] = 0,
    fixed: Annotated[
        Path | None, typer.Option(metavar="X.npy", help="Of fixed: 0 and 1, [clients, experts].")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="X.npy", help="Where the answer goes [default: X.npy, if it is not there]."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Assign experts by matrices of your own (.npy): writes X, prints how good it is."""
    from broker_server import assign_command

    report = assign_command.run(
        assign_command.Request(
            quality=quality,
            samples=samples,
            capacity=capacity,
            policy=policy,
            delta=delta,
            grain=grain,
            solver=solver,
            history=history,
            seed=seed,
            fixed=fixed,
            out=out,
        )
    )
    print(assign_command.to_json(report) if as_json else assign_command.to_text(report))


@app.command()
def doctor(
    broker: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The broker to examine.")
    ] = "127.0.0.1:1883",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """What an MQTT broker can take, and what to set; ends with 1 if it cannot be used."""
    from broker_server.doctor import diagnose, to_json, to_text
    from edge_runtime.address import parse_address

    diagnosis = diagnose(*parse_address(broker))
    print(to_json(diagnosis) if as_json else to_text(diagnosis))
    return 0 if diagnosis.usable else 1


_PASSED_ON = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


@app.command(context_settings=_PASSED_ON)
def device(context: typer.Context) -> int:
    """Run this machine as a device (needs no server extra)."""
    return run_device(context.args)


@app.command(context_settings=_PASSED_ON)
def bench(context: typer.Context) -> int:
    """How fast this machine trains, as `bench device` (needs no server extra)."""
    return run_bench(context.args)


def _load(
    experiment: Path, seed: int | None, rounds: int | None, set_: list[str] | None
) -> Experiment:
    from broker_server.config import load_experiment

    overrides = list(set_ or [])
    overrides += [f"seed={seed}"] if seed is not None else []
    overrides += [f"rounds={rounds}"] if rounds is not None else []
    return load_experiment(experiment, overrides)


def _directory(name: str, out: Path | None, resume: bool) -> Path:
    if out is not None:
        return out
    if resume:
        raise ConfigError("--resume needs --out: the directory of the run to go on with")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{stamp}"


def _console() -> Console:
    from broker_server.console import Console

    return Console()
