"""The server's commands: run, server, broker, data, report, bytes, programs, assign, doctor.

`device`, `bench` and `profiles` are passed on.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker_server.cli_views import bytes_, doctor, report
from edge_runtime.cli import INTERRUPTED, run_bench, run_device, run_profiles
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
    from device_profiles.emulation.scope import enter_scope

    enter_scope()
    loaded = _load(experiment, seed, rounds, set_)

    from broker_server.run import resumable, run_experiment

    directory = _directory(loaded.name, out, resume)
    again = ["flexmoe", "run", str(experiment), *_options(seed, rounds, set_)]
    with resumable(again, directory), _console() as console:
        run_experiment(loaded, directory, [console], resume)


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

    from broker_server.run import resumable, serve_experiment

    directory = _directory(loaded.name, out, resume)
    again = ["flexmoe", "server", str(experiment), *_options(seed, rounds, set_)]
    again += ["--broker", broker] if broker is not None else []
    with resumable(again, directory), _console() as console:
        serve_experiment(loaded, directory, broker, [console], resume)


@app.command()
def broker(
    host: Annotated[
        str, typer.Option(help="Interface; 0.0.0.0 lets other machines connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 1883,
    kind: Annotated[str, typer.Option(help="auto, mosquitto or amqtt.")] = "auto",
) -> None:
    """An MQTT broker, until Ctrl-C."""
    from broker_server.brokers.broker import serve

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


app.command()(report)
app.command("bytes")(bytes_)


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


app.command()(doctor)


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


@app.command(context_settings=_PASSED_ON)
def profiles(context: typer.Context) -> int:
    """Boards and links, and what stands for them here (needs no server extra)."""
    return run_profiles(context.args)


def _load(
    experiment: Path, seed: int | None, rounds: int | None, set_: list[str] | None
) -> Experiment:
    from broker_server.config import load_experiment

    overrides = list(set_ or [])
    overrides += [f"seed={seed}"] if seed is not None else []
    overrides += [f"rounds={rounds}"] if rounds is not None else []
    return load_experiment(experiment, overrides)


def _options(seed: int | None, rounds: int | None, set_: list[str] | None) -> list[str]:
    """These options as they were given."""
    options = [part for change in set_ or [] for part in ("--set", change)]
    options += ["--seed", str(seed)] if seed is not None else []
    return options + (["--rounds", str(rounds)] if rounds is not None else [])


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
