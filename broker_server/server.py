"""A server from an experiment: connect, gather the devices, run the rounds, leave the results."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from broker_server.assembly import assemble
from broker_server.books.audit import Audit
from broker_server.brokers.broker_counters import READ_S
from broker_server.brokers.broker_limits import limits_of
from broker_server.config import load_experiment, to_toml
from broker_server.coordinator import Federation, run_rounds
from broker_server.experiment import Experiment
from broker_server.host import Host
from broker_server.publishing.broadcast import sweep
from broker_server.record import RoundRecord
from broker_server.recording import closed_record
from broker_server.report import replace_file
from broker_server.results import Results
from broker_server.sink import Facts, Sink
from broker_server.state import State
from broker_server.store import Store
from device_profiles.datasets import Dataset
from edge_runtime.errors import ConfigError, EmulationError, FleetError
from edge_runtime.parts import split
from edge_runtime.protocol.ledger import Ledger
from edge_runtime.protocol.mailbox import ServerMailbox
from edge_runtime.protocol.topics import server_id
from edge_runtime.transport.mqtt import MqttLink
from model_export.models import ModelSpec, make_model
from model_export.split import to_weights

COMPLETE = "the run is complete"


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
    directory = store.path.parent
    results = Results(store, run_facts(experiment, host.broker.kind, host.facts()))
    store.describe(to_toml(experiment), results.facts)
    replace_file(directory / "config.toml", to_toml(experiment))
    for sink in sinks:
        sink.started(results.facts)
    client_id = server_id(experiment.broker.federation)
    limits = limits_of(host.broker)
    if host.broker.process is None:
        _sweep(host, experiment.broker.federation)
        _tell_reading(sinks)
    audit, resumed = Audit(host.broker), state.round > 0
    link = MqttLink(host.broker.host, host.broker.port, client_id)
    try:
        mailbox = ServerMailbox(link, experiment.broker.federation, Ledger())
        mailbox.chunk_bytes = limits.chunk_bytes
        federation = assemble(
            experiment, spec, dataset, host, mailbox, state.session, directory, limits
        )
        records = results.records
        before = len(records)
        reason = "the server ended the run early"
        try:
            federation.artifacts.prepare()
            host.start_devices()
            _gather(federation, sinks, host, resumed)

            def finished(after: State, record: RoundRecord) -> None:
                nonlocal state
                state = after
                store.write_round(record, state.to_bytes())
                results.add(record)
                for sink in sinks:
                    sink.round_finished(record)

            run_rounds(state, federation, experiment.rounds, finished)
            reason = COMPLETE
        finally:
            if records:
                # First of all: who is interrupted once may be interrupted again.
                results.save_model(spec, state)
                results.write()
            told = federation.exchange.stop(reason) if host.reachable else {}
            closing = federation.traffic.close(told, federation.exchange.accounts.take())
            federation.spool.clear()
            if host.reachable:
                host.wait_for_devices()
            if len(records) > before:
                results.close(closed_record(records[-1], closing))
                with contextlib.suppress(EmulationError, OSError):  # then the first ones stand
                    closing_facts = host.closing_facts()
                    results.facts = run_facts(experiment, host.broker.kind, closing_facts)
                store.describe(to_toml(experiment), results.facts)
                store.write_final(records[-1], results.agreement)
                results.write()
        if len(records) > before:
            if host.broker.process is None:
                _tell_reading(sinks)
            planned = federation.exchange.holdings.sure_bytes
            older = resumed and not host.devices_are_ours
            agreement = audit.close(records[before:], told, planned, older, host.lost)
            results.close(records[-1], agreement)
            store.write_final(records[-1], results.agreement)
            results.write()
        results.show(sinks)
        return records
    finally:
        link.close()


def already_done(
    experiment: Experiment, dataset: Dataset, store: Store, sinks: Sequence[Sink]
) -> bool:
    """Whether `store` has all rounds of `experiment`: then nothing is to be run.

    Leaves the results once more: what ended the run may have come before they were written.
    """
    checkpoint = store.load_checkpoint()
    if checkpoint is None or checkpoint[0] < experiment.rounds:
        return False
    results = Results(store, store.facts())
    results.save_model(make_spec(experiment, dataset), State.from_bytes(checkpoint[1]))
    results.write()
    for sink in sinks:
        sink.note(
            f"all {checkpoint[0]} rounds are done: see flexmoe report {store.path.parent}, or ask "
            "for more with --rounds"
        )
    return True


def _tell_reading(sinks: Sequence[Sink]) -> None:
    for sink in sinks:
        sink.note(f"reading the broker's counters (up to {READ_S:g} s)")


def _sweep(host: Host, federation: str) -> None:
    """Take from a broker that is not ours what a killed server of this federation left there."""
    link = MqttLink(host.broker.host, host.broker.port, f"{server_id(federation)}::sweep")
    try:
        sweep(link, federation)
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
    need, asks = experiment.round.quorum_of(expected), "round.quorum asks"
    if experiment.assignment.policy == "fixed" and not resumed:
        # Its rows are the devices by name: none may come later.
        need, asks = expected, 'assignment.policy = "fixed" asks'

    def joined(count: int) -> None:
        for sink in sinks:
            sink.joined(count, expected)

    federation.exchange.gather(
        expected,
        experiment.round.join_timeout_s * host.time_scale,  # processes start in our time
        joined,
        host.check_joining,
        enough=lambda: max(need, host.expected(expected)),
    )
    count = len(federation.roster.present)
    if count < need:
        why = [f"{c} was rejected: {why}" for c, why in federation.roster.rejected.items()]
        why += host.incidents()
        advice = "start the others, or set data.devices to what there is"
        raise FleetError(
            f"{count} of {expected} devices joined within {experiment.round.join_timeout_s:g} s "
            f"(round.join_timeout_s), {asks} for {need}; "
            f"{'; '.join(why)[:500] or advice}"
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


def run_facts(experiment: Experiment, broker_kind: str, emulation: Mapping[str, Any]) -> Facts:
    """What is known of a run before its rounds, and of its `emulation` if it has one."""
    facts: dict[str, Any] = {"emulation": emulation} if emulation else {}
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
        **facts,
    }
