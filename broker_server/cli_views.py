"""The commands that only look: report, bytes, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a run.")]


def report(directory: RunDirectory) -> None:
    """Print a run's tables again from its store."""
    from broker_server.console import replay
    from broker_server.store import Store

    with Store.open(directory) as store:
        records = store.records()
        lines = store.finished(records)
        replay(records, store.facts(), directory, store.agreement(), lines=lines)


def bytes_(
    directory: RunDirectory,
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
    from broker_server.books import bytes_command

    bytes_command.show_or_write(directory, by, links, csv, parquet)


def doctor(
    broker: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The broker [default: 127.0.0.1:1883, if any]."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """What this host can emulate, and what an MQTT broker can take; ends with 1 if that cannot be
    used."""
    from broker_server import doctor_command
    from device_profiles.emulation.scope import enter_scope

    enter_scope()
    findings = doctor_command.examine(broker)
    print(doctor_command.to_json(findings) if as_json else doctor_command.to_text(findings))
    return 0 if findings.usable else 1
