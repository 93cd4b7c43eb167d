"""Opening a run's store: a new one, one to go on with, and one that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from broker_server.assembly import assemble
from broker_server.brokers import broker as broker_module
from broker_server.brokers.broker import Broker, free_port
from broker_server.brokers.broker_limits import OWN
from broker_server.config import load_experiment, to_toml
from broker_server.experiment import Experiment
from broker_server.host import Host
from broker_server.run import run_experiment
from broker_server.server import _gather, make_spec, open_store, run_facts, serve
from broker_server.store import Store
from device_profiles import datasets
from edge_runtime.errors import BrokerError, ConfigError, DataError, FleetError
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.transport.memory_link import MemoryBroker, MemoryLink
from tests.broker_server import scripted_fleet
from tests.broker_server.sample_records import round_record


def experiment(**keys: Any) -> Experiment:
    return Experiment.model_validate({"rounds": 2, "data": {"devices": 2}, **keys})


def begun(directory: Path, settings: Experiment, rounds: int = 0) -> None:
    """A run with these settings, broken off after `rounds` rounds."""
    with open_store(settings, directory, resume=False) as store:
        for number in range(1, rounds + 1):
            store.write_round(round_record(number))
        describe(settings, store, "external")


def describe(settings: Experiment, store: Store, broker_kind: str) -> None:
    """What `serve` does before it finds that no broker answers."""
    with pytest.raises(BrokerError, match="no MQTT broker answers"):
        broker = Broker("127.0.0.1", free_port(), broker_kind)
        serve(settings, datasets.load("digits", None), Host(broker), store, [])


def test_a_resumed_run_is_described_as_it_goes_on(tmp_path: Path) -> None:
    begun(tmp_path, experiment(), rounds=1)
    longer = experiment(rounds=60, broker="amqtt")
    with open_store(longer, tmp_path, resume=True) as store:
        describe(longer, store, "amqtt")
        facts = store.facts()
        assert (facts["rounds"], facts["broker"]) == (60, "amqtt")
        assert len(store.records()) == 1
    assert load_experiment(tmp_path / "config.toml") == longer
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.toml", "run.sqlite"]


def test_only_the_same_experiment_is_resumed(tmp_path: Path) -> None:
    before = experiment()
    begun(tmp_path, before, rounds=1)
    for other in (experiment(seed=1), experiment(train={"epochs": 9})):
        with pytest.raises(ConfigError, match=r"other settings .* --out"):
            open_store(other, tmp_path, resume=True)
    assert load_experiment(tmp_path / "config.toml") == before
    (tmp_path / "config.toml").unlink()
    with pytest.raises(ConfigError, match=r"config\.toml: no such file"):
        open_store(before, tmp_path, resume=True)
    with pytest.raises(DataError, match=r"no run\.sqlite there"):
        open_store(before, tmp_path / "elsewhere", resume=True)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("change", [{"trainer": "another"}, {"threads": 7}], ids=str)
def test_what_trains_may_differ_when_a_run_is_resumed(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    before = experiment()
    begun(tmp_path, before, rounds=1)
    train = before.train.model_copy(update=change)
    open_store(before.model_copy(update={"train": train}), tmp_path, resume=True).close()


def test_a_finished_run_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "old", experiment(), rounds=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "old").rglob("*")}

    def start(*arguments: object) -> None:
        raise AssertionError("a broker was started")

    monkeypatch.setattr(broker_module, "_start", start)
    with pytest.raises(ConfigError, match=r"holds a run already; .* --resume"):
        run_experiment(experiment(), tmp_path / "old", [])
    file = tmp_path / "experiment.toml"
    file.write_text(to_toml(experiment()))
    for command in ("run", "server"):
        with pytest.raises(ConfigError, match=r"holds a run already; .* --resume"):
            call(command, str(file), "--out", str(tmp_path / "old"))
    with pytest.raises(DataError, match=r"no run\.sqlite there"):
        call("run", str(file), "--resume", "--out", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "old").rglob("*")} == before


def call(*arguments: str) -> None:
    from broker_server.cli import app

    CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_run_that_failed_before_its_first_round_can_be_started_again(tmp_path: Path) -> None:
    begun(tmp_path, experiment(seed=1))
    begun(tmp_path, experiment(seed=2), rounds=1)
    with Store.open(tmp_path) as store:
        assert (store.facts()["seed"], len(store.records())) == (2, 1)
    assert load_experiment(tmp_path / "config.toml").seed == 2


def test_the_rows_of_a_fixed_assignment_need_all_devices_when_a_run_begins(tmp_path: Path) -> None:
    """They are the devices by name; when it goes on, who is who is known."""
    np.save(tmp_path / "X.npy", np.ones((4, 4)))
    assignments = {
        "fixed": {"policy": "fixed", "file": str(tmp_path / "X.npy")},
        "greedy": {"policy": "greedy"},
    }
    host = Host(Broker("127.0.0.1", free_port(), "external"))
    for name, assignment in assignments.items():
        fleet = scripted_fleet.Fleet(
            tmp_path / name, scripted_fleet.experiment(assignment=assignment)
        )
        _gather(fleet.federation, [], host, resumed=False)
        fleet.lose("b")
        _gather(fleet.federation, [], host, resumed=True)
        if name == "fixed":
            said = r'3 of 4 .* \(round.join_timeout_s\), assignment.policy = "fixed" asks for 4; st'
            with pytest.raises(FleetError, match=said):
                _gather(fleet.federation, [], host, resumed=False)
        else:
            _gather(fleet.federation, [], host, resumed=False)
        fleet.lose("c")
        fleet.lose("d")
        with pytest.raises(FleetError, match=r"1 of 4 devices joined .*, round.quorum asks for 2"):
            _gather(fleet.federation, [], host, resumed=True)


def test_only_devices_that_can_be_there_are_waited_for(tmp_path: Path) -> None:
    """Of our own devices some come later; a round has enough of them."""
    host = Host(Broker("127.0.0.1", free_port(), "external"))
    fleet = scripted_fleet.Fleet(tmp_path, scripted_fleet.experiment())
    fleet.lose("b")
    for here, waits in ((4, True), (3, False), (0, False)):
        host.expected = lambda devices, here=here: here  # type: ignore[method-assign, misc, assignment]
        began_s = fleet.world.now_s
        _gather(fleet.federation, [], host, resumed=False)
        assert (fleet.world.now_s - began_s > 4.0) == waits
    fleet.lose("c")
    fleet.lose("d")
    with pytest.raises(FleetError, match=r"round.quorum asks for 2"):
        _gather(fleet.federation, [], host, resumed=False)


def test_an_emulation_is_among_the_facts() -> None:
    assert "emulation" not in run_facts(experiment(), "mosquitto", {})
    told = run_facts(experiment(), "mosquitto", {"time_scale": 2.0})
    assert told["emulation"] == {"time_scale": 2.0}


def test_an_emulated_fleet_lives_as_its_host_says(tmp_path: Path) -> None:
    """Time scale, waits and kills reach the exchange."""
    settings = experiment()
    dataset = datasets.load("digits", None)
    spec = make_spec(settings, dataset)
    waits = {"a": 2.0}
    host = Host(
        Broker("127.0.0.1", free_port(), "external"), time_scale=3.0, held_s=lambda c: waits[c]
    )
    host._killed.add("a")
    link = MemoryLink(MemoryBroker(), "server")
    mailbox = ServerMailbox(link, "fed", Ledger())
    life = assemble(settings, spec, dataset, host, mailbox, "s", tmp_path, OWN).exchange._life
    assert life.clock_of("a", lambda: 12.0)() == 30.0
    assert set(life.killed()) == {"a"} and not life.killed()
