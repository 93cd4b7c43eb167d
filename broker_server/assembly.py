"""All that a server's rounds work with, put together from its experiment."""

from __future__ import annotations

from pathlib import Path

from broker_server.artifacts import Artifacts
from broker_server.books.traffic import Traffic
from broker_server.brokers.broker_limits import BrokerLimits
from broker_server.coordinator import Federation
from broker_server.evaluation import GlobalEvaluation
from broker_server.exchange import Exchange
from broker_server.experiment import Experiment
from broker_server.host import Host
from broker_server.life import Life
from broker_server.publishing.broadcast import Broadcast
from broker_server.publishing.publication import Publication
from broker_server.roster import Roster
from broker_server.round_problem import chosen_policy
from broker_server.spool import Spool
from device_profiles.datasets import Dataset
from edge_runtime.codec import parse_coding
from edge_runtime.protocol.mailbox import ServerMailbox
from model_export.cache import ProgramCache
from model_export.models import ModelSpec


def assemble(
    experiment: Experiment,
    spec: ModelSpec,
    dataset: Dataset,
    host: Host,
    mailbox: ServerMailbox,
    session: str,
    directory: Path,
    limits: BrokerLimits,
) -> Federation:
    """The federation of `session`, whose run is in `directory`, with nobody in it yet."""
    wire = experiment.wire
    uplink = parse_coding(wire.codings.uplink).codec.name
    roster = Roster(spec, session, uplink, limits.chunk_bytes, limits.retains)
    publication = Publication(wire.codings, wire.whole_every, experiment.seed)
    artifacts = Artifacts(experiment, spec, ProgramCache(), publication)
    broadcast = Broadcast(mailbox, artifacts.find, limits.retains)
    spool = Spool(directory / "spool")
    exchange = Exchange(
        mailbox,
        roster,
        broadcast,
        session,
        spool,
        spec.experts,
        watch=host.check,
        life=Life(host.time_scale, host.held_s, host.killed, host.sees_ends, host.end_turn),
    )
    return Federation(
        experiment=experiment,
        roster=roster,
        exchange=exchange,
        spool=spool,
        publication=publication,
        artifacts=artifacts,
        policy=chosen_policy(experiment),
        evaluation=GlobalEvaluation(
            spec, dataset.x_test, dataset.y_test, experiment.gate.mode == "local"
        ),
        traffic=Traffic(mailbox),
        incidents=host.incidents,
    )
