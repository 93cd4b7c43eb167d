"""Updates on disk: what was put comes back, wherever a client's name might lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_server.spool import Spool
from edge_runtime.errors import FlexmoeError


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    updates = {client: client.encode() for client in ("a", "A", "b", ".", "..", "x" * 64)}
    for client, data in updates.items():
        spool.put(client, data)
    assert {client: spool.get(client) for client in updates} == updates


def test_no_name_leads_out_of_its_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run" / "spool")
    (tmp_path / "run").mkdir()
    for client in (".", "..", "...", "~", "CON"):
        spool.put(client, b"data")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["spool"]
    files = [path for path in (tmp_path / "run" / "spool").rglob("*") if path.is_file()]
    assert len(files) == 5 == len({str(path).lower() for path in files})


def test_names_differ_on_disk_whatever_their_case(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put("pi", b"1")
    spool.put("PI", b"2")
    files = [path.name.lower() for path in tmp_path.iterdir()]
    assert len(set(files)) == 2


def test_the_last_update_of_a_client_counts(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put("a", b"a longer one")
    spool.put("a", b"new")
    assert spool.get("a") == b"new"


def test_clearing_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.clear()
    spool.put("a", b"x")
    spool.clear()
    spool.clear()
    assert list(tmp_path.iterdir()) == []
    spool.put("a", b"y")
    assert spool.get("a") == b"y"


def test_a_disk_that_refuses_is_explained(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    with pytest.raises(FlexmoeError, match=r"cannot keep the updates in .*; free some space"):
        Spool(tmp_path / "spool").put("a", b"x")
    with pytest.raises(FlexmoeError, match=r"cannot remove the updates in .*; check who may write"):
        Spool(tmp_path / "spool").clear()


def test_an_update_that_is_gone_is_explained(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put("a", b"x")
    spool.clear()
    with pytest.raises(FlexmoeError, match=r"cannot read the update of a back .*; check that disk"):
        spool.get("a")
