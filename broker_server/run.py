"""`flexmoe run`: broker, server and a fleet of device processes on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broker_server.broker import open_broker
from broker_server.experiment import Experiment
from broker_server.host import Host
from broker_server.record import RoundRecord
from broker_server.server import open_store, serve
from broker_server.sink import Sink
from device_profiles import datasets
from device_profiles.fleet import Fleet
from device_profiles.shards import make_shards, write_shards


def run_experiment(
    experiment: Experiment, directory: Path, sinks: Sequence[Sink], resume: bool = False
) -> list[RoundRecord]:
    """Run `experiment`, and leave everything in `directory`. No process survives this call."""
    data = experiment.data
    dataset = datasets.load(data.dataset, data.path or None)
    shards = make_shards(dataset, data.devices, data.partition, experiment.seed, data.test_fraction)
    address, port = experiment.broker.address, experiment.broker.port or None
    with (
        open_store(experiment, directory, resume) as store,
        open_broker(address, port, directory / "log") as broker,
    ):
        paths = write_shards(shards, directory / "data")
        fleet = Fleet(
            paths,
            broker.host,
            broker.port,
            experiment.broker.federation,
            experiment.train.trainer,
            directory / "log",
            directory / "state",
            experiment.train.threads,
        )
        with fleet:
            return serve(experiment, dataset, Host(broker, fleet), store, sinks)
