"""`flexmoe assign`: what it writes and prints, and what it says of bad input."""

from __future__ import annotations

import dataclasses
import errno
import json
import pickle
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server import assign_command, load
from broker_server.assign_command import Report, Request
from broker_server.assignment import assign
from edge_runtime.cli import main
from edge_runtime.errors import ConfigError

INPUTS = "--quality Q.npy --samples n.npy --capacity k.npy"


@pytest.fixture(autouse=True)
def _sigterm_put_back() -> Iterator[None]:
    """A command minds SIGTERM in its own way; other tests are about that, too."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good inputs for 6 clients and 4 experts, and some that are not."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    quality = rng.random((6, 4))
    np.save("Q.npy", quality)
    np.save("n.npy", np.array([100, 200, 150, 120, 90, 300]))
    np.save("k.npy", np.array([2, 1, 2, 1, 3, 1]))
    np.save("H.npy", np.array([500.0, 0.0, 0.0, 100.0]))
    np.save("nan.npy", np.where(quality > quality.mean(), np.nan, quality))
    np.save("short.npy", np.ones(5, int))
    np.save("half.npy", np.full(6, 1.5))
    np.save("number.npy", np.float64(3))
    np.save("empty.npy", np.ones((0, 4)))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("archive.npz", quality)
    Path("cut.npy").write_bytes(Path("Q.npy").read_bytes()[:-8])
    Path("head.npy").write_bytes(Path("Q.npy").read_bytes().replace(b"{'descr'", b"{[descr("))
    Path("text.npy").write_text("0.1, 0.2\n0.3, 0.4\n")
    Path("pickle.npy").write_bytes(pickle.dumps([1, 2]))
    Path("nothing.npy").touch()
    return tmp_path


def call(arguments: str) -> int:
    return main(["assign", *arguments.split()])


def test_the_answer_is_the_engines_and_the_certificate_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"{INPUTS} --delta 0.3 --grain 1 --seed 4") == 0
    X = np.load("X.npy")
    quality, samples = np.load("Q.npy"), np.load("n.npy")
    expected = assign(quality, samples, np.load("k.npy"), delta=0.3, grain=1, seed=4)
    assert X.dtype == np.bool_ and (X == expected.X).all()
    out = capsys.readouterr().out
    facts = dict(re.findall(r"^(\w[\w, ]*?) {2,}(.*)$", out, re.MULTILINE))
    assert facts["policy"] == f"flex_moe, by {expected.solver}"
    assert facts["size"] == "6 clients, 4 experts"
    assert float(facts["objective"]) == pytest.approx(expected.objective, rel=1e-6)
    assert float(facts["bound"]) == pytest.approx(expected.bound, rel=1e-6)
    assert facts["gap"] == f"{100 * expected.gap:.4f} %"
    assert facts["violation"].startswith(f"{expected.violation:.2f} samples outside")
    assert f"none has less than {expected.violation_bound:.2f}" in facts["violation"]
    loads = samples @ X
    assert facts["load, samples"].startswith(f"min {loads.min()}, mean {loads.mean():.1f}")
    lower, upper = load.bounds(np.zeros(4), samples, np.load("k.npy"), 0.3, 1)
    assert upper[0] != load.bounds(np.zeros(4), samples, np.load("k.npy"), 0.3)[1][0]
    assert facts["load bounds"] == f"{lower[0]:.1f} to {upper[0]:.1f} for every expert"
    assert facts["written"] == "X.npy, bool [6, 4]"
    (table,) = re.findall(r"^  0 to 3 +(.*)$", out, re.MULTILINE)
    assert [int(cell.rstrip("*")) for cell in table.split()] == loads.tolist()
    assert [cell.endswith("*") for cell in table.split()] == (expected.violated != 0).tolist()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_figure_follows_from_the_matrices(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    clients, experts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    numbers = st.lists(st.integers(1, 40), min_size=clients, max_size=clients)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    quality = rng.normal(size=(clients, experts))
    samples = np.array(data.draw(numbers))
    capacity = np.array([k % experts + 1 for k in data.draw(numbers)])
    history = rng.integers(0, 50, experts)
    folder = tmp_path_factory.mktemp("matrices")
    arrays = {"Q": quality, "n": samples, "k": capacity, "H": history}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    request = Request(
        quality=folder / "Q.npy",
        samples=str(folder / "n.npy"),
        capacity=str(folder / "k.npy"),
        policy=data.draw(st.sampled_from(["flex_moe", "greedy", "random"])),
        delta=data.draw(st.sampled_from([0.0, 0.1, 0.5])),
        grain=data.draw(st.sampled_from([0.0, 0.5, 2.0])),
        history=folder / "H.npy",
        out=folder / "X.npy",
    )
    facts = json.loads(assign_command.to_json(assign_command.run(request)))
    X = np.load(folder / "X.npy")
    assert (X.sum(axis=1) == capacity).all()
    assert facts["objective"] == pytest.approx((quality * X).sum())
    assert facts["load"] == (samples @ X).tolist()
    lower, upper = load.bounds(history, samples, capacity, request.delta, request.grain)
    assert (facts["lower"], facts["upper"]) == (lower.tolist(), upper.tolist())
    nearest = np.clip(facts["load"], facts["lower"], facts["upper"])
    assert facts["violated"] == pytest.approx(facts["load"] - nearest)
    assert facts["violation"] == pytest.approx(np.abs(facts["violated"]).sum())
    after = samples @ X + history
    assert facts["load_cv"] == pytest.approx(after.std() / after.mean())
    if request.policy == "random":
        assert facts["bound"] is facts["gap"] is facts["violation_bound"] is None
    else:
        assert facts["bound"] >= facts["objective"]


def test_json_is_one_object_and_numbers_stand_for_vectors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--quality Q.npy --samples 70 --capacity 2 --policy greedy --json") == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert captured.out.count("\n") == 1 and captured.err == ""
    assert (facts["clients"], facts["experts"], facts["out"]) == (6, 4, "X.npy")
    best = np.sort(np.load("Q.npy"), axis=1)[:, 2:].sum()
    assert facts["objective"] == facts["bound"] == pytest.approx(best)
    assert facts["load"] == (70 * np.load("X.npy").sum(axis=0)).tolist()


def test_a_policy_without_a_certificate_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"{INPUTS} --policy random") == 0
    out = capsys.readouterr().out
    assert out.count("none: this policy gives no certificate") == 2 and "nan" not in out


def test_an_answer_can_be_the_fixed_assignment_of_the_next_call(folder: Path) -> None:
    assert call(f"{INPUTS} --delta 0.5 --out first.npy") == 0
    assert call(f"{INPUTS} --policy fixed --fixed first.npy --out second.npy") == 0
    assert Path("first.npy").read_bytes() == Path("second.npy").read_bytes()


def test_only_a_named_file_is_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{INPUTS} --policy greedy") == 0
    before = Path("X.npy").read_bytes()
    assert call(f"{INPUTS} --policy full") == 2
    assert "X.npy is there already; replace it with --out X.npy" in capsys.readouterr().err
    assert Path("X.npy").read_bytes() == before
    Path("link.npy").symlink_to("X.npy")
    assert call(f"{INPUTS} --policy full --out link.npy") == 0
    assert np.load("X.npy").all() and Path("link.npy").is_symlink()


BAD = {
    "no such file": (f"{INPUTS} --history none.npy", "none.npy: cannot be read: No such file"),
    "a folder": ("--quality . --samples 1 --capacity 1", ".: cannot be read: Is a directory"),
    "text": ("--quality text.npy --samples 1 --capacity 1", "text.npy: expected an array"),
    "pickled": ("--quality pickle.npy --samples 1 --capacity 1", "pickle.npy: expected an array"),
    "objects": ("--quality objects.npy --samples 1 --capacity 1", "objects.npy: expected an array"),
    "an archive": ("--quality archive.npz --samples 1 --capacity 1", "archive.npz: expected an"),
    "cut": ("--quality cut.npy --samples 1 --capacity 1", "cut.npy: expected an array"),
    "a damaged header": ("--quality head.npy --samples 1 --capacity 1", "head.npy: expected an"),
    "nothing": ("--quality nothing.npy --samples 1 --capacity 1", "nothing.npy: expected an"),
    "nan": ("--quality nan.npy --samples 1 --capacity 1", "must be a finite number, not nan"),
    "one number": ("--quality number.npy --samples 1 --capacity 1", "[clients, experts]"),
    "no client": ("--quality empty.npy --samples 1 --capacity 1", "at least one of each"),
    "a vector": ("--quality n.npy --samples 1 --capacity 1", "[clients, experts]"),
    "too few": ("--quality Q.npy --samples short.npy --capacity 1", "shape (6,)"),
    "not whole": ("--quality Q.npy --samples half.npy --capacity 1", "whole numbers"),
    "history": (f"{INPUTS} --history n.npy", "history must have shape (4,)"),
    "no experts": ("--quality Q.npy --samples 1 --capacity 0", "capacity[0] must be 1 to 4"),
    "too many": ("--quality Q.npy --samples 1 --capacity 5", "capacity[0] must be 1 to 4"),
    "no samples": ("--quality Q.npy --samples 0 --capacity 1", "samples[0] must be 1 to"),
    "huge": (f"--quality Q.npy --samples {'9' * 30} --capacity 1", "whole number"),
    "below zero": ("--quality Q.npy --samples 1 --capacity -1", "'-1': expected a whole number"),
    "no file": ("--quality Q.npy --samples 1 --capacity k", "'k': expected a whole number of 1"),
    "a negative delta": (f"{INPUTS} --delta -0.1", "must be 0 to 1e+06 fair shares, not -0.1"),
    "a negative grain": (f"{INPUTS} --grain -0.1", "must be 0 to 1e+06 mean clients, not -0.1"),
    "delta of nan": (f"{INPUTS} --delta nan", "must be 0 to 1e+06 fair shares, not nan"),
    "a negative seed": (f"{INPUTS} --seed -1", "seed must be 0 or more"),
    "an unknown policy": (f"{INPUTS} --policy best", "unknown assignment policy 'best'"),
    "a solver of another policy": (f"{INPUTS} --policy greedy --solver exact", "--solver is for"),
    "an unknown solver": (f"{INPUTS} --solver glop", "unknown solver 'glop'"),
    "fixed without a file": (f"{INPUTS} --policy fixed", "--policy fixed needs --fixed FILE"),
    "a file without fixed": (f"{INPUTS} --fixed X.npy", "--fixed is for --policy fixed"),
    "an input": (f"{INPUTS} --out n.npy", "--out n.npy is one of the inputs"),
    "out is a folder": (f"{INPUTS} --out .", "expected a file"),
    "out is a device": (f"{INPUTS} --out /dev/null", "expected a file"),
    "no folder": (f"{INPUTS} --out a/X.npy", "--out a/X.npy: expected a file, in a folder"),
    "a long name": (f"{INPUTS} --out {'a' * 300}", "cannot be written: File name too long"),
    "no quality": ("--samples n.npy --capacity k.npy", "--quality"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments, words = BAD[name]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert call(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("flexmoe: error: ") and words in line and captured.out == ""
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_leaves_the_old_answer_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(f"{INPUTS} --policy greedy --out X.npy") == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def full(file: Any, *arguments: object, **options: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ConfigError, match=r"X\.npy: cannot be written: No space left"):
        assign_command.run(request(policy="full", out=Path("X.npy")))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_quality_stays_on_disk(folder: Path, kind: type[np.floating[Any]]) -> None:
    np.save("Q.npy", np.load("Q.npy").astype(kind))
    report = assign_command.run(request(policy="greedy"))
    assert isinstance(report.problem.quality.base, np.memmap)
    assert report.problem.quality.dtype == kind


@pytest.mark.parametrize(("experts", "rows"), [(1, 1), (9, 2), (64, 8), (65, 0)])
def test_loads_fit_a_window_and_many_are_not_listed(folder: Path, experts: int, rows: int) -> None:
    np.save("Q.npy", np.random.default_rng(0).random((6, experts)))
    np.save("k.npy", np.ones(6, int))
    text = assign_command.to_text(assign_command.run(request(policy="greedy")))
    assert len(re.findall(r"^  \d+ to \d+ ", text, re.MULTILINE)) == rows
    assert max(map(len, text.splitlines())) <= 100


def test_large_loads_take_fewer_columns(folder: Path) -> None:
    np.save("Q.npy", np.random.default_rng(0).random((6, 64)))
    report = assign_command.run(request(policy="greedy", samples="999999999", capacity="1"))
    text = assign_command.to_text(report)
    rows = re.findall(r"^  \d+ to \d+ +(.*)$", text, re.MULTILINE)
    listed = [int(cell.rstrip("*")) for row in rows for cell in row.split()]
    assert len(rows) > 8 and listed == report.answer.load.tolist()
    assert max(map(len, text.splitlines())) <= 100


def test_the_history_is_in_the_text(folder: Path) -> None:
    report: Report = assign_command.run(request(history=Path("H.npy")))
    after = np.load("H.npy") + np.load("n.npy") @ np.load("X.npy")
    text = assign_command.to_text(report)
    assert f"with history   CV {after.std() / after.mean():.4f}" in text
    low, high = report.problem.lower, report.problem.upper
    spans = (f"{bound.min():.1f} to {bound.max():.1f}" for bound in (low, high))
    assert "load bounds    lower {}, upper {}".format(*spans) in text


def request(**changes: Any) -> Request:
    good = Request(quality=Path("Q.npy"), samples="n.npy", capacity="k.npy")
    return dataclasses.replace(good, **changes)
