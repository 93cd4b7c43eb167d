"""The profiles that come with flexmoe, and where the user's own are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from device_profiles.catalogue.board import Board
from device_profiles.catalogue.profiles import (
    LINKS,
    PUBLISHED_LINKS,
    boards,
    find_board,
    find_link,
    links,
    profiles_root,
    to_toml,
)
from edge_runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
OURS = ROOT / "device_profiles" / "catalogue"
SUPPORTED = {
    *("pi-zero-2w", "pi-3b-plus", "pi-4b", "pi-5", "imx8m-mini", "jetson-nano"),
    *("beaglebone-ai-64", "n100"),
}
UNSUPPORTED = {"pi-zero-w", "beaglebone-black", "imx6ull", "imx6q"}
LINK_NAMES = ["ethernet", "wifi", "wifi-poor", "lte-m", "nb-iot", "lora", "custom"]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's profiles, still empty."""
    monkeypatch.setenv("FLEXMOE_PROFILES", str(tmp_path / "own"))
    for kind in ("boards", "links"):
        (tmp_path / "own" / kind).mkdir(parents=True)
    return tmp_path / "own"


def complaint(name: str, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        find_board(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_that_comes_with_flexmoe_is_found_by_its_name() -> None:
    assert set(boards()) == SUPPORTED | UNSUPPORTED == {f.stem for f in OURS.glob("boards/*")}
    assert list(links()) == list(LINKS) == LINK_NAMES
    assert list(PUBLISHED_LINKS) == LINK_NAMES[:-1]
    assert {name for name, board in boards().items() if board.supported} == SUPPORTED
    for name, board in boards().items():
        assert find_board(name) == board and board.name == name
        assert find_link(board.link).name == board.link
    assert all(find_link(name) == link for name, link in links().items())


def test_the_files_are_as_they_would_be_written() -> None:
    """So that all of them explain their keys alike, and are good to copy."""
    for name, board in boards().items():
        assert (OURS / "boards" / f"{name}.toml").read_text(encoding="utf-8") == to_toml(board)
    for name, link in links().items():
        assert (OURS / "links" / f"{name}.toml").read_text(encoding="utf-8") == to_toml(link)


def test_figures_that_tell_of_guesses_are_marked() -> None:
    guesses = (
        "estimate",
        "no figure",
        "taken for",
        "scaled",
        "less ",
        "/ 4",
        "half of",
        "not look",
    )
    for profile in (*boards().values(), *links().values()):
        for label, figure in profile.figures.items():
            if any(word in figure.source for word in guesses) and "both ways" not in figure.source:
                assert figure.assumed, (profile.name, label)


def test_boards_are_in_order_of_speed_and_those_without_a_runtime_last() -> None:
    def speed(board: Board) -> tuple[bool, float]:
        return not board.supported, board.integer_mips.value

    assert list(boards().values()) == sorted(boards().values(), key=speed)
    for board in boards().values():
        assert bool(board.unsupported_because) is not board.supported
        # Nobody's memory limit is above what its board's system leaves.
        assert board.memory_mib.value <= board.ram_mib.value - 300
        assert board.memory_mib.value <= 200 or board.ram_mib.value > 512


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pi-zero2w", "pi-zero-2w or pi-zero-w"),
        ("Pi_4B", "pi-4b"),
        ("beaglebone", "beaglebone-ai-64 or beaglebone-black"),
        ("imx8mmini", "imx8m-mini"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_ones(name: str, nearest: str) -> None:
    message = complaint(name)
    assert message.startswith(f'"{name}": no such board; did you mean {nearest}')


def test_a_name_like_no_other_is_answered_with_all() -> None:
    for name in ("zzz", "", "../pi-4b", "a\nb"):
        message = complaint(name)
        assert "no such board" in message
    assert all(name in complaint("zzz") for name in boards())
    with pytest.raises(ConfigError, match="no such class of links; did you mean nb-iot"):
        find_link("nbiot")


def test_the_users_profiles_stand_beside_ours(own: Path) -> None:
    mine = own / "boards" / "my-board.toml"
    mine.write_text(to_toml(find_board("pi-4b")).replace("value = 1769", "value = 1"))
    (own / "links" / "sat.toml").write_text(to_toml(LINKS["lte-m"]))
    assert find_board("my-board").integer_mips.value == 1
    assert find_link("sat").name == "sat"
    assert next(iter(boards())) == "my-board"
    assert set(boards()) == SUPPORTED | UNSUPPORTED | {"my-board"}
    assert "sat" in links() and "sat" not in LINKS
    assert "did you mean my-board" in complaint("myboard")


def test_a_defect_of_one_of_the_users_profiles_hides_none_of_the_others(own: Path) -> None:
    broken = own / "boards" / "broken.toml"
    broken.write_text("x = 1")
    assert find_board("pi-4b").name == "pi-4b"
    assert complaint("broken").startswith(f"{broken}: unknown key x;")
    with pytest.raises(ConfigError):
        boards()


def test_the_user_cannot_give_a_name_of_ours_another_meaning(own: Path) -> None:
    file = own / "boards" / "pi-4b.toml"
    file.write_text(to_toml(find_board("pi-5")))
    expected = f"{file}: flexmoe has a board called pi-4b; give the file another name"
    assert complaint("pi-4b") == expected
    with pytest.raises(ConfigError, match="give the file another name"):
        boards()


def test_a_path_is_read_from_the_folder_it_starts_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "here" / "lab.toml"
    file.parent.mkdir()
    file.write_text(to_toml(find_board("n100")))
    for name, folder in (
        (str(file), None),
        ("lab.toml", file.parent),
        ("here/lab.toml", tmp_path),
        ("../here/lab.toml", file.parent),
    ):
        found = find_board(name, folder)
        assert (found.name, found.cores) == ("lab", find_board("n100").cores)
    monkeypatch.chdir(file.parent)
    assert find_board("lab.toml").name == "lab"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_board("~/here/lab.toml", file.parent).name == "lab"
    assert complaint("lab.toml", tmp_path).startswith(f"{tmp_path / 'lab.toml'}: no such file")


def test_where_the_users_profiles_are(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    assert profiles_root() == own
    monkeypatch.delenv("FLEXMOE_PROFILES")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/xdg")
    assert profiles_root() == Path("/etc/xdg/flexmoe/profiles")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/nobody")
    assert profiles_root() == Path("/home/nobody/.config/flexmoe/profiles")
    assert set(boards()) == SUPPORTED | UNSUPPORTED


def test_importing_the_catalogue_reads_links_only_and_needs_the_base_install() -> None:
    code = """
import sys
from pathlib import Path
read = []
open_ = Path.open
Path.open = lambda self, *rest, **more: read.append(self.parent.name) or open_(self, *rest, **more)
from device_profiles.catalogue import profiles as catalogue
assert catalogue.LINKS and read == ["links"] * 7, read
catalogue.find_board("pi-4b"), catalogue.find_board("pi-5"), catalogue.links()
print(read.count("links"), read.count("boards"))
print(*{name.partition(".")[0] for name in sys.modules} & {"numpy", "pydantic", "torch"})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["7", "12"]
