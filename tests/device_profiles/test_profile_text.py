"""What people are shown of profiles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device_profiles.catalogue.figure import Figure
from device_profiles.catalogue.profile_text import describe, describe_link, listing
from device_profiles.catalogue.profiles import LINKS, find_board

BOARDS = {name: find_board(name) for name in ("pi-zero-2w", "n100", "pi-zero-w", "imx6q")}


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_shown_with_all_its_figures_and_their_sources(name: str) -> None:
    board = BOARDS[name]
    text = describe(board)
    assert max(map(len, text.splitlines())) <= 100
    for label, figure in board.figures.items():
        mark = "ASSUMED: " if figure.assumed else ""
        shown = f"{label} {figure.value:,.10g} {mark}{figure.source}"
        assert one_line(shown) in one_line(text)
    assert board.title in text and board.architecture in text and board.link in text
    assert one_line(text).count("ASSUMED: ") == sum(f.assumed for f in board.figures.values())
    assert (
        "flexmoe does not run on it: ExecuTorch has no" in one_line(text)
    ) is not board.supported


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_shown_with_all_its_figures_and_its_energy_by_byte(name: str) -> None:
    link = LINKS[name]
    text = describe_link(link)
    assert max(map(len, text.splitlines())) <= 100
    for label, figure in link.figures.items():
        assert one_line(f"{label} {figure.value:,.10g} {figure.said}") in one_line(text)
    if name == "nb-iot":  # 0.5 W at 62 kbit/s, 0.15 W at 26 kbit/s
        assert "sending takes 64.52 µJ a byte, receiving 46.15 µJ a byte" in text


def test_a_list_has_a_line_for_each_and_says_what_does_not_run() -> None:
    text = listing(BOARDS, LINKS)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    (zero,) = (line for line in lines if line.startswith("pi-zero-2w "))
    assert zero.split()[-7:] == ["1,000", "MHz", "512", "200", "838", "2.7", "wifi"]
    assert "Raspberry Pi Zero 2 W" in zero and "4 x 1,000 MHz" in zero
    for name, board in BOARDS.items():
        assert sum(line.startswith(f"{name}* ") for line in lines) == (not board.supported)
    reason = "* flexmoe does not run on pi-zero-w, imx6q: ExecuTorch has no package for 32-bit ARM"
    assert one_line(text).count(reason) == 1
    (lora,) = (line for line in lines if line.startswith("lora "))
    assert one_line(lora).endswith("5.47 k 5.47 k 500 ms 5 % 200 61.43")


def test_without_a_board_that_does_not_run_there_is_no_note_of_it() -> None:
    assert "does not run" not in listing({"n100": BOARDS["n100"]}, LINKS)


def test_values_far_from_the_usual_ones_keep_within_the_lines() -> None:
    board = replace(
        BOARDS["n100"],
        title="word " * 40,
        clock_mhz=Figure(1e300, "long " * 100),
        cpu_w=Figure(1e-9, "x" * 300),
        idle_w=None,
    )
    text = describe(board)
    assert max(map(len, text.splitlines())) <= 100
    assert "idle board" not in text and "1e+300" in text and "1e-09" in text
