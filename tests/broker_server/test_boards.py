"""What a run gave to the devices of each board, against sums done by hand; and how it is shown."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from broker_server.board_table import board_table
from broker_server.boards import BoardRow, by_board, worth_a_table
from broker_server.books.run_bytes import RunBytes
from broker_server.record import ClientRound, Device, RoundRecord
from broker_server.tables import render
from broker_server.totals import final
from tests.broker_server.sample_records import client_round, device, late_client, round_record

NAMES = ("a", "b", "c")
COMPUTE = "a round with 3 experts takes 31 s, 2 s of it on the way; 24 s of round.deadline_s are"


def board(name: str, board_name: str, link: str) -> Device:
    return replace(device(name), board=board_name, link=link)


DEVICES = [
    board("a", "pi-zero-2w", "lte-m"),
    board("b", "pi-4b", "wifi"),
    board("c", "pi-4b", "wifi"),
]


def at_work(name: str, experts: int, **fields: object) -> ClientRound:
    plain = client_round(name)
    lists = {"usage": [1] * experts, "loss": [0.5] * experts, "hits": [1] * experts}
    plain = replace(plain, asked=0, capacity=0, limit="asked", why="")
    return replace(plain, experts=list(range(experts)), quality=[], **lists, **fields)  # type: ignore[arg-type]


def told(train_s: float, peak_mib: float, **more: float) -> dict[str, float]:
    return {"train_s": train_s, "fetch_s": train_s / 10, "cpu_s": 2.0, "memory_limit_mib": 48.0,
            "memory_peak_mib": peak_mib, "throttled_share": 0.25, **more}  # fmt: skip


def run() -> list[RoundRecord]:
    """Three rounds; ``a`` is killed in the second, ``c`` leaves in the third."""
    zero = {"asked": 3, "capacity": 1, "limit": "compute"}
    four = {"asked": 4, "capacity": 4, "limit": "asked", "why": ""}
    killed = replace(late_client("a"), status="killed", experts=[0, 1], quality=[], **zero)
    gone = replace(late_client("c"), status="gone", experts=[0, 1, 2, 3], quality=[], **four)
    rounds = [
        [
            at_work("a", 3, telemetry=told(31.0, 41.0), asked=3, capacity=3),
            at_work("b", 4, telemetry=told(4.0, 30.0), **four),
            at_work("c", 4, telemetry=told(8.0, 35.0), **four),
        ],
        [replace(killed, why="older"), at_work("b", 4, telemetry=told(6.0, 31.0), **four)],
        [at_work("a", 1, telemetry=told(11.0, 40.0), **zero, why=COMPUTE), gone],
    ]
    return [
        replace(
            round_record(number, NAMES), clients=clients, devices=DEVICES if number == 1 else []
        )
        for number, clients in enumerate(rounds, 1)
    ]


def rows() -> list[BoardRow]:
    return by_board(run(), DEVICES)


def test_each_board_has_its_sums() -> None:
    four, zero = rows()
    assert zero == BoardRow(
        board="pi-zero-2w",
        link="lte-m",
        devices=1,
        asked=3.0,
        given=2.0,  # 3, 2 and 1
        given_last=1.0,
        limits={"compute": 2, "asked": 1},
        why={"compute": COMPUTE},
        train_s=21.0,
        fetch_s=2.1,
        cpu_s=4.0,
        throttled_share=0.25,
        memory_peak_mib=41.0,
        memory_limit_mib=48.0,
        kills=1,
        left=0,
    )
    assert (four.board, four.link, four.devices) == ("pi-4b", "wifi", 2)
    assert (four.asked, four.given, four.given_last) == (4.0, 4.0, 4.0)
    assert (four.limits, four.why, four.train_s, four.cpu_s) == ({"asked": 4}, {}, 6.0, 6.0)
    assert (four.kills, four.left, four.memory_peak_mib) == (0, 1, 35.0)


def test_what_nobody_told_is_not_there() -> None:
    quiet = [
        replace(record, clients=[replace(c, telemetry={}) for c in record.clients])
        for record in run()
    ]
    for row in by_board(quiet, DEVICES):
        figures = (row.train_s, row.fetch_s, row.cpu_s, row.throttled_share)
        assert figures == (None,) * 4 and row.memory_peak_mib is row.memory_limit_mib is None
        shown = text(by_board(quiet, DEVICES))
        assert " - " in shown[2]


def test_without_a_limit_the_peak_is_the_process_s_own() -> None:
    own = at_work("a", 1, telemetry={"peak_rss_mib": 77.0, "memory_peak_mib": 1344.0})
    (row,) = by_board([replace(round_record(1, NAMES), clients=[own])], DEVICES)
    assert (row.memory_peak_mib, row.memory_limit_mib) == (77.0, None)


def test_a_device_that_nobody_described_is_of_no_board() -> None:
    (row,) = by_board([replace(round_record(1), clients=[at_work("x", 1)])], DEVICES)
    assert (row.board, row.link, row.devices) == ("", "", 1)


def text(table_rows: list[BoardRow], width: int = 100) -> list[str]:
    paper = Console(file=io.StringIO(), width=width)
    with paper.capture() as capture:
        paper.print(*board_table(table_rows), sep="\n")
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_the_table_and_why() -> None:
    lines = text(rows())
    assert lines[0].startswith("Devices by board")
    assert lines[1].split() == (
        [
            "board",
            "link",
            "n",
            "asked",
            "last",
            "mean",
            "bound",
            "by",
            "train",
            "s",
            "fetch",
            "s",
            "CPU",
            "s",
            "thr.",
            "MiB",
            "kills",
            "left",
        ]
    )
    four, zero = (
        next(line for line in lines if line.startswith(name)).split() for name in ("pi-4b", "pi-z")
    )
    assert four == [
        "pi-4b",
        "wifi",
        "2",
        "4",
        "4",
        "4.00",
        "asked",
        "4",
        "6",
        "0.60",
        "6",
        "25",
        "%",
        "35/48",
        "0",
        "1",
    ]
    assert zero[:7] == ["pi-zero-2w", "lte-m", "1", "3", "1", "2.00", "compute"]
    assert zero[-7:] == ["2.1", "4", "25", "%", "41/48", "1", "0"]
    assert f"pi-zero-2w: compute: {COMPUTE}" in " ".join(lines)
    assert not any("older" in line for line in lines)  # the newest counts


def test_reasons_name_the_link_where_a_board_has_several() -> None:
    zero = rows()[1]
    crowd = [
        replace(zero, link="lte-m", why={"link": "slow"}),
        replace(zero, link="wifi", why={"compute": "busy"}),
        replace(zero, board="pi-4b", why={"memory": "full"}),
        replace(zero, board="", link="wifi", why={"memory": "full"}),
        replace(zero, board="", link="", why={"memory": "none"}),
    ]
    lines = text(crowd)
    assert [line.strip() for line in lines[-5:]] == [
        "pi-zero-2w, lte-m: link: slow",
        "pi-zero-2w, wifi: compute: busy",
        "pi-4b: memory: full",
        "wifi: memory: full",
        "devices: memory: none",
    ]


def test_a_crowd_of_boards_fits_100_columns() -> None:
    wide = replace(
        rows()[1],
        board="a-board-with-a-long-name", link="a-long-link", devices=200,
        limits={"compute": 12000, "memory": 11000, "link": 10000, "asked": 9999},
        train_s=12345.6, fetch_s=1234.5, cpu_s=123456.7, throttled_share=0.999,
        memory_peak_mib=2048.0, memory_limit_mib=2048.0, kills=1234, left=1234,
    )  # fmt: skip
    lines = text([wide] * 3)
    assert max(map(len, lines)) <= 100
    said = " ".join(lines)
    for figure in ("12346", "1234", "123457", "100 %", "2048/2048", "200"):
        assert figure in said


def test_there_is_a_table_where_there_is_something_to_tell_apart() -> None:
    plain = round_record(1, NAMES)
    for devices, wanted in (
        ([device(name) for name in NAMES], False),
        ([board(name, "", "wifi") for name in NAMES], False),
        ([board("a", "", "lte-m"), *(board(name, "", "wifi") for name in "bc")], True),
        ([board(name, "pi-4b", "wifi") for name in NAMES], True),
    ):
        record = replace(plain, devices=devices)
        assert worth_a_table(by_board([record], devices)) == wanted
        paper = Console(file=io.StringIO(), width=100)
        with paper.capture() as capture:
            paper.print(*render([record], {}), sep="\n")
        assert ("Devices by board" in capture.get()) == wanted


def test_the_report_has_the_same() -> None:
    records = run()
    boards = final(records, RunBytes.of(records))["boards"]
    assert [(b["board"], b["given"], b["limits"], b["why"]) for b in boards] == [
        ("pi-4b", 4.0, {"asked": 4}, {}),
        ("pi-zero-2w", 2.0, {"compute": 2, "asked": 1}, {"compute": COMPUTE}),
    ]
