"""A fleet: what becomes of devices that end."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_profiles.fleet import Fleet
from edge_runtime.errors import FleetError


def fleet(
    tmp_path: Path, trainer: str = "native", threads: int = 0, link: str = "", **shards: Path
) -> Fleet:
    # Nobody listens on port 1: a device with good data waits no longer than it takes to say so.
    log, links = tmp_path / "log", dict.fromkeys(shards, link) if link else {}
    return Fleet(shards, "127.0.0.1", 1, "default", trainer, log, tmp_path, threads, links)


def test_a_device_that_cannot_start_is_named_once_with_its_last_words(tmp_path: Path) -> None:
    with fleet(tmp_path, first=tmp_path / "none.npz", second=tmp_path / "nothing.npz") as devices:
        devices.wait(60)
        said = sorted(devices.ended())
        assert [line.split()[0] for line in said] == ["first", "second"]
        assert "ended with code 2" in said[0] and "none.npz" in said[0]
        assert str(tmp_path / "log" / "first.log") in said[0]
        assert devices.ended() == []


def test_a_device_that_cannot_start_ends_the_joining(tmp_path: Path) -> None:
    with fleet(tmp_path, only=tmp_path / "none.npz") as devices:
        devices.wait(60)
        with pytest.raises(FleetError, match=r"only ended with code 2: .*none\.npz"):
            devices.check()


@pytest.mark.parametrize(
    ("trainer", "threads", "link", "says"),
    [
        ("tf", 0, "", "--trainer: invalid choice: 'tf'"),
        ("native", -1, "", "--threads: .* got '-1'"),
        ("native", 0, "two words", "link name 'two words': expected"),
    ],
)
def test_devices_are_told_how_to_train_and_how_they_are_linked(
    trainer: str, threads: int, link: str, says: str, tmp_path: Path
) -> None:
    """Nonsense shows that it arrives."""
    with fleet(tmp_path, trainer, threads, link, only=tmp_path / "none.npz") as devices:
        devices.wait(60)
        with pytest.raises(FleetError, match=says):
            devices.check()


def test_a_fleet_that_runs_is_ended_on_the_way_out(tmp_path: Path) -> None:
    with fleet(tmp_path, only=tmp_path / "none.npz") as devices:
        (process,) = devices._devices.values()
    assert process.poll() is not None
