"""A server from an experiment: connect, gather the devices, run the rounds, leave the results."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from broker_server.artifacts import Artifacts
from broker_server.config import load_experiment, to_toml
from broker_server.coordinator import Federation, run_rounds
from broker_server.evaluation import GlobalEvaluation
from broker_server.exchange import Exchange
from broker_server.experiment import Experiment
from broker_server.host import Host
from broker_server.record import RoundRecord
from broker_server.report import replace_file, write_report
from broker_server.roster import Roster
from broker_server.round_problem import chosen_policy
from broker_server.sink import Facts, Sink
from broker_server.spool import Spool
from broker_server.state import State
from broker_server.store import Store
from broker_server.traffic import Traffic
from device_profiles.datasets import Dataset
from edge_runtime.codec import RawCodec
from edge_runtime.errors import ConfigError, FleetError
from edge_runtime.ledger import Ledger
from edge_runtime.mailbox import ServerMailbox
from edge_runtime.mqtt import MqttLink
from edge_runtime.parts import merge, split
from model_export.cache import ProgramCache
from model_export.checkpoint import save_model
from model_export.models import ModelSpec, make_model
from model_export.split import to_weights


def serve(
    experiment: Experiment,
    dataset: Dataset,
    host: Host,
    store: Store,
    sinks: Sequence[Sink],
) -> list[RoundRecord]:
    """Run `experiment` with the devices on the host's broker, from where `store` left off.

    Whatever ends the rounds early, the devices are told to stop and the finished rounds are
    reported.
    """
    # The models are small: one thread is as fast, and its sums repeat themselves.
    torch.set_num_threads(1)
    spec = make_spec(experiment, dataset)
    state = _first_state(experiment, spec, store)
    directory, facts = store.path.parent, run_facts(experiment, host.broker.kind)
    store.describe(to_toml(experiment), facts)
    replace_file(directory / "config.toml", to_toml(experiment))
    client_id = f"flexmoe-{experiment.broker.federation}-server"
    link = MqttLink(host.broker.host, host.broker.port, client_id)
    try:
        mailbox = ServerMailbox(link, experiment.broker.federation, Ledger())
        codec, spool = RawCodec(), Spool(directory / "spool")
        roster = Roster(spec, state.session)
        federation = Federation(
            experiment=experiment,
            roster=roster,
            exchange=Exchange(mailbox, roster, state.session, spool, codec, watch=host.check),
            spool=spool,
            codec=codec,
            artifacts=Artifacts(experiment, spec, ProgramCache(), codec),
            policy=chosen_policy(experiment),
            evaluation=GlobalEvaluation(
                spec, dataset.x_test, dataset.y_test, experiment.gate.mode == "local"
            ),
            traffic=Traffic(mailbox),
            incidents=host.incidents,
        )
        records = store.records()
        for sink in sinks:
            sink.started(facts)
        reason = "the server ended the run early"
        try:
            federation.artifacts.prepare()
            _gather(federation, sinks, host, resumed=state.round > 0)

            def finished(after: State, record: RoundRecord) -> None:
                nonlocal state
                state = after
                store.write_round(record, state.to_bytes())
                records.append(record)
                for sink in sinks:
                    sink.round_finished(record)

            run_rounds(state, federation, experiment.rounds, finished)
            reason = "the run is complete"
        finally:
            federation.exchange.stop(reason)
            spool.clear()
            if records:
                save_model(directory / "model", spec, merge(state.model))
                write_report(directory, records, facts)
        for sink in sinks:
            sink.finished(records, directory)
        return records
    finally:
        link.close()


def open_store(experiment: Experiment, directory: Path, resume: bool) -> Store:
    """A new store for `experiment`, or the one in `directory` to go on from."""
    if not resume:
        return Store.create(directory)
    store = Store.open(directory)
    try:
        before = load_experiment(directory / "config.toml")
        # More rounds may be asked for, the broker may have moved, and each device chooses its own
        # trainer; anything else is another run.
        chosen = {"trainer": experiment.train.trainer, "threads": experiment.train.threads}
        train = before.train.model_copy(update=chosen)
        free = {"rounds": experiment.rounds, "broker": experiment.broker, "train": train}
        if before.model_copy(update=free) != experiment:
            raise ConfigError(
                f"{directory}: this run was started with other settings (see its config.toml); "
                "resume it with those, or choose another --out"
            )
    except BaseException:
        store.close()
        raise
    return store


def make_spec(experiment: Experiment, dataset: Dataset) -> ModelSpec:
    """The model that this experiment trains on this data."""
    return ModelSpec(
        experiment.model.name,
        tuple(dataset.x_train.shape[1:]),
        len(dataset.classes),
        experiment.model.experts,
    )


def _gather(federation: Federation, sinks: Sequence[Sink], host: Host, resumed: bool) -> None:
    """Wait for the devices; go on without some as long as there is a quorum."""
    experiment = federation.experiment
    expected = experiment.data.devices

    def joined(count: int) -> None:
        for sink in sinks:
            sink.joined(count, expected)

    federation.exchange.gather(
        expected, experiment.round.join_timeout_s, joined, host.check_joining
    )
    count, need = len(federation.roster.present), experiment.round.quorum_of(expected)
    asks = "round.quorum asks"
    if experiment.assignment.policy == "fixed" and not resumed:
        # Its rows are the devices by name: none may come later.
        need, asks = expected, 'assignment.policy = "fixed" asks'
    if count < need:
        rejected = [f"{c} was rejected: {why}" for c, why in federation.roster.rejected.items()]
        advice = "start the others, or set data.devices to what there is"
        raise FleetError(
            f"{count} of {expected} devices joined within {experiment.round.join_timeout_s:g} s "
            f"(round.join_timeout_s), {asks} for {need}; "
            f"{'; '.join(rejected)[:500] or advice}"
        )


def _first_state(experiment: Experiment, spec: ModelSpec, store: Store) -> State:
    checkpoint = store.load_checkpoint()
    if checkpoint is not None:
        return State.from_bytes(checkpoint[1])
    model = make_model(spec, experiment.seed)
    return State(
        session=uuid.uuid4().hex[:12],
        round=0,
        model=split(to_weights(model)),
        quality={},
        trials={},
        load=np.zeros(spec.experts, np.int64),
        routed=np.zeros(spec.experts, np.int64),
    )


def run_facts(experiment: Experiment, broker_kind: str) -> Facts:
    return {
        "name": experiment.name,
        "seed": experiment.seed,
        "rounds": experiment.rounds,
        "model": experiment.model.name,
        "experts": experiment.model.experts,
        "devices": experiment.data.devices,
        "partition": experiment.data.partition,
        "policy": experiment.assignment.policy,
        "broker": broker_kind,
    }
