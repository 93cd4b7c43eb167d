"""`flexmoe profiles`, as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from device_profiles.calibration import board_entry, calibration
from device_profiles.calibration.host_figures import HostFigures
from device_profiles.catalogue.profiles import boards, find_board, find_link, links, to_toml
from device_profiles.emulation import belongings
from edge_runtime.cli import main
from tests.test_rooms import ROOT, without_server_extra

HOST = HostFigures("Some CPU", "x86_64", 2, "avx2", 4000.0, 100.0, 9000.0)
SLOW = HostFigures("Slow CPU", "aarch64", 4, "neon", 1800.0, 20.0, 3000.0)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host of known figures, without a device tree; no profiles of the user's."""
    monkeypatch.setattr(calibration, "measure", lambda seconds: HOST)
    monkeypatch.setattr(calibration, "board_model", lambda model=None: "")
    monkeypatch.setenv("FLEXMOE_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setenv("FLEXMOE_CACHE", str(tmp_path / "cache"))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["profiles", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["profiles", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("flexmoe: error: ")
    return line


def test_the_list_has_every_board_and_link(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list")
    for name in (*boards(), *links()):
        assert name in text


@pytest.mark.parametrize("name", ["pi-5", "nb-iot"])
def test_a_profile_is_shown_with_its_sources(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = " ".join(said(capsys, "show", name).split())
    profile = find_board(name) if name in boards() else find_link(name)
    for figure in profile.figures.values():
        assert " ".join(figure.source.split())[:40] in text


@pytest.mark.parametrize("name", ["pi-5", "pi-zero-w", "nb-iot", "lora"])
def test_what_is_shown_as_toml_is_sound_and_the_same_profile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    file = tmp_path / f"{name}.toml"
    file.write_text(said(capsys, "show", name, "--toml"))
    read = find_board(str(file)) if name in boards() else find_link(str(file))
    assert read == (boards() | links())[name]
    assert said(capsys, "check", str(file)).splitlines()[-1].startswith(f"{file}: a sound ")
    assert said(capsys, "show", str(file)) == said(capsys, "show", name)


def test_a_name_that_is_not_known_is_told_its_neighbours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "did you mean pi-5 or" in refused(capsys, "show", "PI5")
    assert "did you mean lte-m" in refused(capsys, "show", "ltem")
    assert "flexmoe profiles list" in refused(capsys, "show", "%%%%")


def test_a_bad_file_is_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = refused(capsys, "check", str(tmp_path / "missing.toml"))
    assert "no such file" in missing
    assert "ends in .toml" in refused(capsys, "check", str(tmp_path / "pi-5.txt"))
    link = tmp_path / "mine.toml"
    link.write_text(to_toml(find_link("nb-iot")).replace("value = 62000", "value = -1"))
    assert "mine.toml: up_rate.value: expected" in refused(capsys, "check", str(link))
    board = to_toml(find_board("pi-5"))
    link.write_text(board.replace("[cores]", "[coars]"))
    assert "unknown key coars; did you mean cores?" in refused(capsys, "check", str(link))
    link.write_text(board.replace('link = "wifi"', 'link = "wify"'))
    assert "mine.toml: link: " in refused(capsys, "check", str(link))


def test_calibrate_says_what_stands_for_each_board(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "calibrate")
    assert calibration.of_this_host() == HOST  # what a run goes by from now on
    assert "Some CPU" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line[:1].isalpha()}
    assert set(boards()) <= set(lines)
    mips = boards()["pi-zero-2w"].integer_mips.value
    assert lines["pi-zero-2w"][1:5] == [
        f"{mips / 4000:.3f}",
        f"{round(mips / 4000 * 10_000) / 1000:.3f}",
        "of",
        "10.0",
    ]
    assert "pi-zero-w cannot be emulated: flexmoe does not run on it" in text


def test_calibrate_says_why_a_board_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", lambda seconds: SLOW)
    text = " ".join(said(capsys, "calibrate").split())
    share = boards()["pi-5"].integer_mips.value / SLOW.integer_mips
    assert f"pi-5 cannot be emulated: a thread needs {share:.2f} of a core of this host" in text
    found = json.loads(said(capsys, "calibrate", "--json"))
    assert found["host"] == SLOW.to_record()
    assert set(found["boards"]) == set(boards())
    pi_5, pi_4 = found["boards"]["pi-5"], found["boards"]["pi-4b"]
    assert (pi_5["fits"], pi_5["threads"], "quota_us" in pi_5["integer"]) == (False, 0, False)
    assert 0.5 < pi_5["largest_time_scale"] < 1
    assert pi_4["integer"]["ratio"] == pytest.approx(
        boards()["pi-4b"].integer_mips.value / SLOW.integer_mips
    )
    got = pi_4["integer"]["quota_us"] / pi_4["integer"]["period_us"]
    assert got == pytest.approx(pi_4["integer"]["ratio"], rel=0.001)


def test_an_entry_is_a_profile_once_the_rest_is_filled_in(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(capsys, "calibrate", "--entry", "my-board")
    file = tmp_path / "my-board.toml"
    file.write_text(text[text.index("# my-board.toml") :])
    assert "got nothing" in refused(capsys, "check", str(file))
    filled = file.read_text().replace('# link = ""', 'link = "wifi"')
    filled = filled.replace('# [cpu_w]\n# value =\n# source = ""', cpu_w := "[cpu_w]\nvalue = 2")
    filled = filled.replace(cpu_w, f'{cpu_w}\nsource = "a meter"')
    clock = '[clock_mhz]\nvalue = 1000\nsource = "its maker"'
    filled = filled.replace('# [clock_mhz]\n# value =\n# source = ""', clock)
    file.write_text(filled)
    board = find_board(str(file))
    assert (board.integer_mips.value, board.gemm_gflops.value) == (4000, 100)
    assert board.memory_mb_s.source.startswith("flexmoe profiles calibrate on Some CPU")
    assert (board.cores.value, board.architecture) == (2, "x86_64")


def test_a_real_board_gets_an_entry_unasked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "Raspberry Pi 4 Model B Rev 1.4"
    monkeypatch.setattr(calibration, "board_model", lambda path=None: model)
    assert "# raspberry-pi-4-model-b-rev-1-4.toml" in said(capsys, "calibrate")
    assert "[integer_mips]" in json.loads(said(capsys, "calibrate", "--json"))["entry"]


def test_a_clock_that_the_kernel_knows_is_in_the_entry(tmp_path: Path) -> None:
    clock = tmp_path / "cpuinfo_max_freq"
    clock.write_text("1800000\n")
    assert "[clock_mhz]\nvalue = 1800.0\n" in board_entry.entry_of("pi", HOST, clock)
    assert "# [clock_mhz]" in board_entry.entry_of("pi", HOST, tmp_path / "nothing")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["show"],
        ["sing"],
        ["calibrate", "--seconds", "0"],
        ["calibrate", "--seconds", "nan"],
        ["calibrate", "--seconds", "ten"],
        ["calibrate", "--entry", "no/name"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    refused(capsys, *arguments)


class Leftover:
    """Stands for what a run has left, of which `left` cannot be removed."""

    run = "abc123"

    def __init__(self, left: list[str]) -> None:
        self._left = left

    def remove_all(self) -> list[str]:
        return self._left


def test_clean_says_what_it_removed_and_what_it_could_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Leftover] = []
    monkeypatch.setattr(belongings, "find_leftovers", lambda: found)
    assert said(capsys, "clean") == "nothing was left behind\n"
    found.append(Leftover([]))
    assert said(capsys, "clean") == "removed what the run abc123 had left\n"
    found.append(Leftover(["group /sys/some: busy"]))
    assert "cannot be removed: group /sys/some: busy;" in refused(capsys, "clean")


def test_it_works_without_the_server_extra() -> None:
    run = "from edge_runtime.cli import main\nsys.exit(main(['profiles', 'list']))"
    end = without_server_extra(run)
    assert (end.returncode, end.stderr) == (0, "")
    assert "pi-zero-2w" in end.stdout


def test_the_servers_command_line_knows_it_too() -> None:
    help_ = [sys.executable, "-m", "edge_runtime", "--help"]
    end = subprocess.run(help_, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "profiles" in end.stdout
