"""How much memory does a device take, and how long until it is there?

    python benchmarks/device_memory.py [--data DIR] [--model digits|har|cifar]... [--json]

For each model a real broker, a real server and one real `flexmoe device` process that trains on one
device's shard of the experiment in `experiments/` (cifar: batch 16), once with the native trainer
and once with the stock ExecuTorch runtime. The peak is the kernel's (`VmHWM`), as the device
reports it after its last round; `start` is the time from the process's start to its first message
at the broker; `import` the time of a fresh interpreter to make the trainer. DIR holds the data sets
(default: FLEXMOE_DATA, else ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from broker_server.brokers.broker import Broker, open_broker
from broker_server.config import load_experiment
from device_profiles import datasets
from device_profiles.shards import make_shards, write_shards
from edge_runtime.protocol.topics import up_topic
from edge_runtime.transport.mqtt import MqttLink

ROOT = Path(__file__).parents[1]
TRAINERS = ("native", "executorch")
EXPERIMENTS = {"digits": ("quickstart", ""), "har": ("har", "uci_har.npz")}
EXPERIMENTS["cifar"] = ("cifar", "cifar10_small.npz")
BATCH = {"cifar": 16}
ROUNDS = 2
REPEATS = 5
WAIT_S = 60


def measure(model: str, data: Path) -> dict[str, float]:
    """Peak MiB of a device that trains `model`, with each trainer."""
    name, file = EXPERIMENTS[model]
    path = ROOT / "experiments" / f"{name}.toml"
    changes = [f"data.path={data / file}"] if file else []
    changes += [f"train.batch={BATCH[model]}"] if model in BATCH else []
    experiment = load_experiment(path, changes)
    settings = experiment.data
    shards = make_shards(
        datasets.load(settings.dataset, settings.path or None),
        settings.devices,
        settings.partition,
        experiment.seed,
        settings.test_fraction,
    )
    largest = max(shards, key=lambda device: shards[device].samples)
    changes += ["data.devices=1", "data.partition=iid", "round.deadline_s=900"]
    with tempfile.TemporaryDirectory() as folder:
        shard = write_shards({largest: shards[largest]}, folder)[largest]
        with open_broker("auto", None, Path(folder) / "log") as broker:
            peaks = {
                f"{trainer}_peak_mib": _train(path, changes, broker, shard, trainer, Path(folder))
                for trainer in TRAINERS
            }
    return {"samples": shards[largest].samples, "batch": experiment.train.batch, **peaks}


def _train(
    experiment: Path, changes: list[str], broker: Broker, shard: Path, trainer: str, folder: Path
) -> float:
    """The peak of one device over a run of its own."""
    federation, out = f"memory-{trainer}", folder / trainer
    changes = [*changes, f"broker.federation={federation}"]
    sets = [argument for change in changes for argument in ("--set", change)]
    command = [*_flexmoe("server"), str(experiment), *sets, "--rounds", str(ROUNDS)]
    command += ["--broker", f"{broker.host}:{broker.port}", "--out", str(out)]
    device = _device(broker, shard, trainer, federation)
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    finally:
        device.terminate()
        device.wait()
    with sqlite3.connect(out / "run.sqlite") as store:
        query = "SELECT max(value) FROM telemetry WHERE key = 'peak_rss_mib'"
        peak: float = store.execute(query).fetchone()[0]
    return peak


def start_s(trainer: str) -> float:
    """Median seconds from a device's start to its first message."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(datasets.load("digits", None), 8, "iid", 0, 0.2)
        shard = next(iter(write_shards(shards, folder).values()))
        with open_broker("auto", None, Path(folder) / "log") as broker:
            for repeat in range(REPEATS):
                federation = f"start-{trainer}-{repeat}"
                watch = MqttLink(broker.host, broker.port, f"watch-{federation}")
                watch.subscribe(up_topic(federation, "#"))
                began_s = time.perf_counter()
                device = _device(broker, shard, trainer, federation)
                if watch.receive(WAIT_S) is None:
                    raise SystemExit(f"the device with the trainer {trainer} said nothing")
                times.append(time.perf_counter() - began_s)
                device.kill()
                device.wait()
                watch.close()
    return statistics.median(times)


def import_s(trainer: str) -> float:
    """Median seconds of an interpreter that makes the trainer and ends."""
    code = f"from edge_runtime.trainers import make_trainer; make_trainer({trainer!r})"
    times = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def _device(broker: Broker, shard: Path, trainer: str, federation: str) -> subprocess.Popen[bytes]:
    where = f"{broker.host}:{broker.port}"
    command = [*_flexmoe("device"), "--broker", where, "--id", "device", "--data", str(shard)]
    command += ["--federation", federation, "--trainer", trainer]
    command += ["--cache", str(shard.with_name(f"programs-{federation}"))]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet)


def _flexmoe(command: str) -> list[str]:
    return [sys.executable, "-m", "edge_runtime", command]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("FLEXMOE_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default), metavar="DIR")
    parser.add_argument("--model", choices=EXPERIMENTS, action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for model in options.model or EXPERIMENTS:
        file = EXPERIMENTS[model][1]
        if file and not (options.data / file).exists():
            raise SystemExit(f"{options.data / file} is missing; name its folder with --data DIR")
        results[model] = measure(model, options.data)
    times = {t: {"start_s": start_s(t), "import_s": import_s(t)} for t in TRAINERS}
    if options.json:
        print(json.dumps({**results, **times}))
        return
    print(f"{'model':8}{'batch':>7}{'samples':>9}{'native peak MiB':>17}{'stock peak MiB':>16}")
    for model, r in results.items():
        print(
            f"{model:8}{r['batch']:7.0f}{r['samples']:9.0f}"
            f"{r['native_peak_mib']:17.1f}{r['executorch_peak_mib']:16.1f}"
        )
    print(f"{'trainer':12}{'start s':>9}{'import s':>10}")
    for trainer, t in times.items():
        print(f"{trainer:12}{t['start_s']:9.2f}{t['import_s']:10.2f}")


if __name__ == "__main__":
    main()
