"""What a run notes of what it makes, and whose it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from device_profiles.emulation import belongings as module
from device_profiles.emulation.belongings import (
    Belongings,
    default_folder,
    find_leftovers,
    make_run_token,
)
from edge_runtime.errors import EmulationError


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as process:
        pass
    return process.pid


def test_tokens_are_short_and_not_alike() -> None:
    tokens = {make_run_token() for _ in range(200)}
    assert len(tokens) == 200
    assert all(re.fullmatch("[a-z0-9]{6}", token) for token in tokens)


def test_things_are_noted_in_order_in_a_folder_of_our_own(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for it"
    ours = Belongings("abc123", folder)
    ours.note("group", Path("/a/flexmoe-abc123"))
    ours.note("netns", "fx-abc123-0")
    first, *rest = ours.path.read_text().splitlines()
    assert first.split()[:2] == ["owner", str(os.getpid())]
    assert rest == ["group /a/flexmoe-abc123", "netns fx-abc123-0"]
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match="line break"):
        ours.note("netns", "a\ngroup /")
    assert ours.path.read_text().splitlines()[1:] == rest


def test_a_run_that_is_there_already(tmp_path: Path) -> None:
    Belongings("abc123", tmp_path).note("netns", "x")
    with pytest.raises(EmulationError, match=r"a run 'abc123' already: .*flexmoe profiles clean"):
        Belongings("abc123", tmp_path)
    assert "netns x" in (tmp_path / "abc123").read_text()


def test_a_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmulationError, match="cannot note what the run makes: "):
        Belongings("abc123", tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(EmulationError, match=r"belongs to user \d+, not to 12345"):
        Belongings("abc123", tmp_path)
    assert not (tmp_path / "abc123").exists()


def test_a_note_that_cannot_be_written(tmp_path: Path) -> None:
    ours = Belongings("abc123", tmp_path)
    ours.path.unlink()
    ours.path.mkdir()
    with pytest.raises(EmulationError, match="cannot note what the run makes"):
        ours.note("netns", "x")


def test_leftovers_are_of_the_dead_alone(tmp_path: Path) -> None:
    assert find_leftovers(tmp_path / "nowhere") == []
    Belongings("living", tmp_path)
    (tmp_path / "dead").write_text(f"owner {dead_pid()} 5\nnetns flexmoe-no-such\n")
    (tmp_path / "again").write_text(f"owner {os.getpid()} 5\n")  # the same number, another start
    (tmp_path / "begun").write_text("")  # whose owner is about to write its line
    found = find_leftovers(tmp_path)
    assert [belongings.run for belongings in found] == ["again", "dead"]
    assert [belongings.remove_all() for belongings in found] == [[], []]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "living"]
    assert find_leftovers(tmp_path) == []


def test_nothing_is_touched_that_no_run_has_made(tmp_path: Path) -> None:
    ours = Belongings("abc123", tmp_path / "notes")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    hidden = tmp_path / "flexmoe-abc123" / ".." / "stranger"
    (tmp_path / "flexmoe-abc123").mkdir()
    ours.note("group", stranger)
    ours.note("leaf", hidden)
    ours.note("group", "flexmoe-relative")
    assert ours.remove_all() == [
        f"group {stranger}: not one of ours",
        "group flexmoe-relative: not one of ours",
        f"leaf {hidden}: not one of ours",
    ]
    assert stranger.is_dir() and ours.path.exists()


def test_what_stays_is_told_and_stays_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.sweep, "_PATIENCE_S", 0.05)
    ours = Belongings("abc123", tmp_path / "notes")
    held, free = tmp_path / "flexmoe-abc123", tmp_path / "flexmoe-abc124"
    for group in (held, free):
        (group / "device-00").mkdir(parents=True)
        ours.note("group", group)
    (held / "device-00" / "file").touch()  # of a folder that is no group: it holds it
    assert ours.remove_all() == [f"group {held / 'device-00'}: Directory not empty"]
    assert not free.exists() and ours.path.exists()
    (held / "device-00" / "file").unlink()
    assert ours.remove_all() == []
    assert not held.exists() and not ours.path.exists()
    assert ours.remove_all() == []


def test_where_notes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: "/temp")
    writable = {"/run", str(tmp_path)}
    monkeypatch.setattr(os, "access", lambda path, _: str(path) in writable)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_folder() == Path("/run/flexmoe")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_folder() == tmp_path / "flexmoe"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_folder() == Path("/temp/flexmoe-1000")
    writable.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_folder() == Path("/temp/flexmoe-0")
