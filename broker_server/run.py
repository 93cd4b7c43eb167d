"""`flexmoe run`: broker, server and a fleet of devices on this machine. `flexmoe server` alone."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from broker_server.brokers.broker import open_broker
from broker_server.emulation import opened, plan_emulation
from broker_server.experiment import Experiment
from broker_server.host import Host
from broker_server.record import RoundRecord
from broker_server.server import already_done, open_store, serve
from broker_server.sink import Sink
from broker_server.store import Store
from device_profiles import datasets
from device_profiles.fleet.fleet import Fleet
from device_profiles.shards import make_shards, write_shards
from edge_runtime.errors import FlexmoeError


def run_experiment(
    experiment: Experiment, directory: Path, sinks: Sequence[Sink], resume: bool = False
) -> list[RoundRecord]:
    """Run `experiment`, and leave everything in `directory`. No process survives this call."""
    emulation = plan_emulation(experiment)
    data = experiment.data
    dataset = datasets.load(data.dataset, data.path or None)
    shards = make_shards(dataset, data.devices, data.partition, experiment.seed, data.test_fraction)
    address, port = experiment.broker.address, experiment.broker.port or None
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(experiment, directory, resume))
        if already_done(experiment, dataset, store, sinks):
            return store.records()
        stack.enter_context(opened(emulation))
        for line in emulation.lines():
            for sink in sinks:
                sink.note(line)
        broker = stack.enter_context(
            open_broker(address, port, directory / "log", emulation.broker_host)
        )
        paths = write_shards(shards, directory / "data")
        if emulation.to_check:
            for sink in sinks:
                sink.note("measuring how close the boards and links come, some seconds")
            emulation.check()

        def start_fleet() -> Fleet:
            return stack.enter_context(emulation.fleet(paths, broker, directory))

        host = Host(
            broker,
            start_fleet,
            time_scale=emulation.time_scale,
            held_s=emulation.held_s,
            end_turn=emulation.end_turn,
            facts=emulation.facts,
            closing_facts=emulation.closing_facts,
        )
        return serve(experiment, dataset, host, store, sinks)


def serve_experiment(
    experiment: Experiment,
    directory: Path,
    address: str | None,
    sinks: Sequence[Sink],
    resume: bool = False,
) -> list[RoundRecord]:
    """Run `experiment` with devices that are started elsewhere.

    `address`: of the broker, None: the experiment's.
    """
    dataset = datasets.load(experiment.data.dataset, experiment.data.path or None)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(experiment, directory, resume))
        if already_done(experiment, dataset, store, sinks):
            return store.records()
        choice, port = address or experiment.broker.address, experiment.broker.port or None
        broker = stack.enter_context(open_broker(choice, port, directory / "log"))
        federation = experiment.broker.federation
        for sink in sinks:
            sink.note(f"server at broker {broker.host}:{broker.port}, federation {federation}")
        return serve(experiment, dataset, Host(broker), store, sinks)


@contextlib.contextmanager
def resumable(command: Sequence[str], directory: Path) -> Iterator[None]:
    """When a run is interrupted, tell how many rounds are there, and how to go on: `command`."""
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(FlexmoeError), Store.open(directory) as store:
            if count := store.rounds():
                rounds = "1 round is" if count == 1 else f"{count} rounds are"
                again = shlex.join([*command, "--resume", "--out", str(directory)])
                print(f"flexmoe: {rounds} in {directory}; go on with: {again}", file=sys.stderr)
        raise
