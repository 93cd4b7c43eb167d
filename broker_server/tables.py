"""The tables that close a run, as rich renderables of at most 100 columns.

Bytes are wire bytes (whole MQTT packets); up is device to server.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from broker_server.board_table import board_table
from broker_server.boards import by_board, worth_a_table
from broker_server.books.agreement import Agreement
from broker_server.books.byte_tables import agreement_lines, budgets, by_device, by_kind, on_links
from broker_server.books.run_bytes import RunBytes
from broker_server.emulation_tables import emulation_tables
from broker_server.figures import figure, human_bytes, plain_table, titled
from broker_server.record import RoundRecord
from broker_server.sink import Facts
from broker_server.totals import devices, drops, final, left_out


def render(
    records: Sequence[RoundRecord],
    facts: Facts,
    agreement: Agreement = (),
    run: RunBytes | None = None,
) -> list[RenderableType]:
    """The closing tables, at most 100 columns wide; without `run` the bytes are the records'."""
    if not records:
        return [Text("No round was finished.")]
    run = RunBytes.of(records) if run is None else run
    tables: list[RenderableType] = [_result(records, facts, run), by_device(run), by_kind(run)]
    if (asked := budgets(run)) is not None:
        tables.append(asked)
    tables += on_links(run)
    if worth_a_table(rows := by_board(records, devices(records))):
        tables += board_table(rows)
    if any(client.status != "ok" for record in records for client in record.clients):
        tables.append(_left_out_table(records))
    if any(record.drops for record in records):
        tables.append(_drops_table(records))
    return [*tables, *emulation_tables(facts), *agreement_lines(agreement)]


def _result(records: Sequence[RoundRecord], facts: Facts, run: RunBytes) -> Table:
    closing = final(records, run)
    best = closing["best_global_accuracy"]
    rounds, up, down = closing["rounds"], closing["uplink_bytes"], closing["downlink_bytes"]
    sent = closing["egress_bytes"]
    name = facts.get("name", "run")
    table = titled(f"{name}: after round {records[-1].round}", show_header=False)
    lines = [
        ("global accuracy", f"{figure(closing['global_accuracy'])}  (best {figure(best)})"),
        (
            "device accuracy",
            f"{figure(closing['device_accuracy'])}  (mean; own model, own held-out data)",
        ),
        ("training loss", figure(closing["loss"])),
        (
            "load CV",
            f"{figure(closing['load_cv'])} as assigned, {figure(closing['routed_cv'])} as routed, "
            f"{figure(closing['usage_cv'])} as routed in the last round",
        ),
        ("up", f"{human_bytes(up)}  ({human_bytes(round(up / rounds))} a round)"),
        ("down", f"{human_bytes(down)}  ({human_bytes(round(down / rounds))} a round)"),
        ("server", f"{human_bytes(sent)} sent  ({human_bytes(round(sent / rounds))} a round)"),
        (
            "time",
            f"{figure(closing['rounds_s'], 1)} s  "
            f"({figure(closing['rounds_s'] / rounds, 2)} s a round)",
        ),
    ]
    for trainer, share in closing["memory_by_trainer"].items():
        largest, mean, total = (
            figure(share[f"{key}_mib"], 1) for key in ("largest", "mean", "sum")
        )
        what = f"{largest} MiB a device at most, {mean} on average, {total} in all"
        lines.append(("memory", f"{what}  ({share['devices']} {escape(trainer)})"))
    if closing["device_cpu_s"] is not None:
        lines.append(("CPU", f"{figure(closing['device_cpu_s'], 1)} s, all devices together"))
    missed = sum(record.violated_samples > 0 for record in records)
    if missed:
        samples = closing["violated_samples"]
        lines.append(
            ("load bounds", f"missed in {missed} of {rounds} rounds, by {samples} samples")
        )
    for label, value in lines:
        table.add_row(label, value)
    return table


def _left_out_table(records: Sequence[RoundRecord]) -> Table:
    table = titled("Left out")
    for column in ("device", "why", "rounds", "last detail"):
        table.add_column(column, overflow="fold")
    for client, by_status in left_out(records).items():
        for status, (rounds, detail) in by_status.items():
            table.add_row(escape(client), status, _ranges(rounds), Text(detail))
    return table


def _ranges(rounds: Sequence[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3, 7``."""
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _drops_table(records: Sequence[RoundRecord]) -> Table:
    table = plain_table("Dropped messages", "reason", "count")
    for reason, count in drops(records).items():
        table.add_row(Text(reason), str(count))
    return table
