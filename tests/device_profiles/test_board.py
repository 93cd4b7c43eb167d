"""Boards as files: what is read, what is refused and how, and the way back."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_profiles.catalogue.board import ARCHITECTURES, BOARD_KEYS, Board
from device_profiles.catalogue.figure import Figure
from device_profiles.catalogue.profile_file import read_board, to_toml
from edge_runtime.errors import ConfigError

LINES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)
VALUES = st.floats(1e-9, 1e300) | st.integers(1, 10**6)
FIGURES = st.builds(Figure, VALUES, LINES, st.booleans())
UNITS = {key.key: FIGURES for key in BOARD_KEYS if key.key not in ("cores", "ram_mib")}


def board(**changed: Figure | None) -> Board:
    figures: dict[str, Figure | None] = {
        key.key: Figure(float(number), f"source of {key.key}", number % 2 == 0)
        for number, key in enumerate(BOARD_KEYS, start=3)
    }
    figures |= {"ram_mib": Figure(512, "a data sheet")}
    return Board(
        name="mine",
        title="My board",
        architecture="aarch64",
        supported=True,
        unsupported_because="",
        link="wifi",
        **{**figures, **changed},  # type: ignore[arg-type]
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(board()))
    return path


def complaint(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_board(file)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_a_board_has_a_key_for_each_figure() -> None:
    kinds = {field.name: str(field.type) for field in fields(Board)}
    figures = {name for name, kind in kinds.items() if "Figure" in kind}
    assert figures == {key.key for key in BOARD_KEYS}
    optional = {name for name, kind in kinds.items() if "None" in kind}
    assert optional == {key.key for key in BOARD_KEYS if key.optional}


@settings(max_examples=50)
@given(
    figures=st.fixed_dictionaries({**UNITS, "idle_w": st.none() | FIGURES}),
    cores=st.integers(1, 999),
    spare=st.floats(1, 1e6),
    title=LINES,
    reason=st.just("") | LINES,
    architecture=st.sampled_from(ARCHITECTURES),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    figures: dict[str, Figure],
    cores: int,
    spare: float,
    title: str,
    reason: str,
    architecture: str,
) -> None:
    written = Board(
        name="b",
        title=title,
        architecture=architecture,
        supported=not reason,
        unsupported_because=reason,
        link="lte-m",
        cores=Figure(cores, "x"),
        ram_mib=Figure(figures["memory_mib"].value * spare, "x"),
        **figures,
    )
    file = tmp_path_factory.mktemp("boards") / "b.toml"
    file.write_text(to_toml(written), encoding="utf-8")
    assert read_board(file) == written


def test_figures_may_be_inline_tables_and_what_is_optional_left_out(file: Path) -> None:
    lines = ['title = "T"', 'architecture = "x86_64"', 'link = "ethernet"']
    lines += [f'{k.key} = {{value = 2, source = "s"}}' for k in BOARD_KEYS if not k.optional]
    file.write_text("\n".join(lines))
    read = read_board(file)
    assert (read.name, read.supported, read.unsupported_because) == ("mine", True, "")
    assert read.idle_w is None and "idle board, W" not in read.figures
    assert read.cores == Figure(2.0, "s", False)
    file.write_text("\n".join(["cores = 4", *(line for line in lines if "cores" not in line)]))
    assert complaint(file).startswith("cores: expected a table of value, source and, if it is so,")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title = ", "titel = ", "unknown key titel; did you mean title?"),
        ("title = ", "xyz = ", "unknown key xyz; known are title, architecture, "),
        ('"My board"', "7", "title: expected a text of one line, not empty, got 7"),
        ('"My board"', '" "', 'title: expected a text of one line, not empty, got " "'),
        ('"My board"', '"a\\nb"', 'title: expected a text of one line, not empty, got "a\\nb"'),
        ('title = "My board"', "", "title: expected a text of one line, not empty, got nothing"),
        ('"aarch64"', '"mips"', 'architecture: expected "aarch64" or "x86_64" or "armv7" or'),
        ("= true", '= "yes"', 'supported: expected true or false, got "yes"'),
        ("= true", "= false", "unsupported_because: expected a text of one line, not empty, got n"),
        (
            "= true",
            '= true\nunsupported_because = "no"',
            'unsupported_because: expected it only beside supported = false, got "no"',
        ),
        ('"wifi"', '"a b"', 'link: expected the name of a class of links, got "a b"'),
        ('"wifi"', "[1]", "link: expected the name of a class of links, got a list"),
        ("[cores]", "[corse]", "unknown key corse; did you mean cores?"),
        ("[cores]\nvalue", "[cores]\nvale", "unknown key cores.vale; did you mean value?"),
        ("[cores]\nvalue = 3", "[cores]", "cores.value: expected a whole number from 1, got noth"),
        ("value = 3", "value = 2.5", "cores.value: expected a whole number from 1, got 2.5"),
        ("value = 3", "value = 0", "cores.value: expected a whole number from 1, got 0"),
        ("value = 3", 'value = "3"', 'cores.value: expected a whole number from 1, got "3"'),
        ("value = 3", "value = true", "cores.value: expected a whole number from 1, got true"),
        ("value = 3", "value = {}", "cores.value: expected a whole number from 1, got a table"),
        ("value = 4", "value = inf", "clock_mhz.value: expected a number above 0, got inf"),
        ("value = 4", "value = nan", "clock_mhz.value: expected a number above 0, got nan"),
        ("value = 4", "value = -1", "clock_mhz.value: expected a number above 0, got -1"),
        ("value = 4", "value = 0.0", "clock_mhz.value: expected a number above 0, got 0.0"),
        ("value = 4", "value = 1" + 400 * "0", "clock_mhz.value: expected a number above 0, got 1"),
        ("value = 10", "value = -0.1", "cpu_w.value: expected a number from 0, got -0.1"),
        ("value = 6", "value = 513", "memory_mib.value: expected at most ram_mib, 512, got 513"),
        ('"source of cores"', '""', "cores.source: expected a text of one line, not empty, got"),
        ("assumed = true", "assumed = 1", "clock_mhz.assumed: expected true or false, got 1"),
        ("link = ", "cores = 4\nlink = ", "not TOML: "),
        ("title = ", "title ", "not TOML: "),
    ],
)
def test_a_defect_is_named_with_what_was_expected_and_what_came(
    file: Path, old: str, new: str, said: str
) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert complaint(file).startswith(said)


def test_no_line_can_be_left_out_or_doubled_unseen(file: Path) -> None:
    lines = [line for line in to_toml(board()).splitlines() if line and line[0] != "#"]
    for at, line in enumerate(lines):
        for times in (0, 2):
            file.write_text("\n".join([*lines[:at], *[line] * times, *lines[at + 1 :]]))
            if times == 0 and line in ("supported = true", "assumed = true"):
                assert read_board(file).title == "My board"
            else:
                complaint(file)


def test_files_that_cannot_be_profiles(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert complaint(missing).startswith("no such file; expected a board in TOML")
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert complaint(folder).startswith("cannot be read: ")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'title = "\xff"')
    assert complaint(latin) == "not TOML: expected a text in UTF-8"
    spaced = tmp_path / "a b.toml"
    spaced.write_text(to_toml(board()))
    assert complaint(spaced).startswith("board name 'a b': expected 1 to 64 letters")
