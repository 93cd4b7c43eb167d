"""What devices say of their own bytes: each counted once, and nothing that cannot be."""

from __future__ import annotations

import dataclasses

import pytest

from broker_server.books.accounts import SLACK_BYTES, SLACK_FACTOR, Accounts, check_account
from edge_runtime.errors import WireError
from edge_runtime.protocol.messages import Account, Moved, Report
from tests.broker_server.sample_model import make_assign, make_report


def moved(kind: str, factor: int = 1) -> Moved:
    return Moved(kind, *(factor * figure for figure in (10, 20, 1, 100, 200, 2)))


def nothing() -> tuple[int, int]:
    """What a server moved that has only begun."""
    return 0, 0


def report(number: int, attempt: int = 1, session: str = "s", account: object = None) -> Report:
    assign = make_assign(number=number, attempt=attempt, session=session)
    return dataclasses.replace(
        make_report(assign, {}),
        account=[moved("control")] if account is None else account,  # type: ignore[arg-type]
    )


KINDS = ["program", "backbone", "gate", "expert:0", "expert:3", "control", "connection"]


def test_the_kinds_of_a_model_pass() -> None:
    check_account([moved(kind) for kind in KINDS], experts=4)
    check_account([], experts=4)
    most = SLACK_BYTES
    check_account([Moved("gate", 0, most, most, 0, most, most)], experts=4)


@pytest.mark.parametrize(
    "account",
    [
        [moved("expert:4")],
        [moved("expert:-1")],
        [moved("expert:")],
        [moved("expert:0x1")],
        [moved("expert:99999999999")],
        [moved("message")],
        [moved("")],
        [moved("gate\n")],
        [moved("a" * 1000)],
        [moved("gate"), moved("control"), moved("gate")],
        [Moved("gate", 0, SLACK_BYTES + 1, 0, 0, 0, 0)],
        [Moved("gate", 0, 0, 0, 0, SLACK_BYTES + 1, 0)],
        [Moved("gate", 0, 0, SLACK_BYTES + 1, 0, 0, 0)],
        [Moved("gate", 0, 0, 0, 0, 0, SLACK_BYTES + 1)],
        [Moved("gate", 0, SLACK_BYTES, 0, 0, 0, 0), Moved("control", 0, 1, 0, 0, 0, 0)],
    ],
)
def test_what_cannot_be_is_refused(account: list[Moved]) -> None:
    with pytest.raises(WireError) as caught:
        check_account(account, experts=4)
    assert caught.value.reason == "bad-account"
    accounts = Accounts("s", 4, nothing)
    with pytest.raises(WireError):
        accounts.report("a", report(1, account=account))
    assert accounts.take() == {}


def test_no_device_moves_much_more_than_the_server() -> None:
    """What the server sent bounds the way down, what it received the way up."""
    sent, received = 5000, 300
    up, down = (SLACK_BYTES + SLACK_FACTOR * size for size in (received, sent))
    accounts = Accounts("s", 4, lambda: (sent, received))
    accounts.report("a", report(1, account=[Moved("gate", 0, up, 0, 0, down, 0)]))
    said = accounts.take()
    for more_up, more_down in ((1, 0), (0, 1)):
        claimed = Moved("gate", 0, up + more_up, 0, 0, down + more_down, 0)
        with pytest.raises(WireError, match="bad-account"):
            accounts.report("a", report(2, account=[claimed]))
    assert said.keys() == {"a"} and accounts.take() == {}


def test_a_report_counts_once() -> None:
    accounts = Accounts("s", 4, nothing)
    for number, attempt in ((1, 1), (1, 1), (1, 2), (1, 1), (3, 1), (2, 1)):
        accounts.report("b", report(number, attempt))
    accounts.report("a", report(1))
    assert accounts.take() == {"a": [moved("control")], "b": [moved("control", 3)]}
    assert accounts.take() == {}
    accounts.report("b", report(3))
    assert accounts.take() == {}


def test_kinds_are_added_up() -> None:
    accounts = Accounts("s", 4, nothing)
    accounts.report("a", report(1, account=[moved("gate"), moved("control")]))
    accounts.report("a", report(2, account=[moved("control", 5)]))
    assert accounts.take() == {"a": [moved("gate"), moved("control", 6)]}


def test_another_sessions_report_does_not_count() -> None:
    accounts = Accounts("s", 4, nothing)
    accounts.report("a", report(9, session="of yesterday"))
    assert accounts.take() == {}
    accounts.report("a", report(1))
    assert accounts.take() == {"a": [moved("control")]}


def test_the_last_word_is_waited_for() -> None:
    accounts = Accounts("s", 4, nothing)
    last = Account("s", [moved("gate")])
    with pytest.raises(WireError, match="stale"):
        accounts.close("a", last)
    accounts.wait_for(["a", "b", "c"])
    accounts.close("a", last)
    for client, message in (("a", last), ("d", last), ("b", Account("x", [moved("gate")]))):
        with pytest.raises(WireError, match="stale"):
            accounts.close(client, message)
    accounts.give_up("b")
    accounts.give_up("nobody")
    assert accounts.awaited
    accounts.close("c", Account("s", []))
    assert not accounts.awaited
    accounts.report("c", report(1))
    accounts.report("b", report(1))
    assert accounts.take_closed() == {"a": last, "c": Account("s", [moved("control")])}
    # What a device said that had no last word is not lost.
    assert accounts.take() == {"b": [moved("control")]}
