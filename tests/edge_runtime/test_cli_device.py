"""The options of `flexmoe device`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.cli import run_device
from edge_runtime.device_options import device_parser
from edge_runtime.errors import BrokerError, ConfigError

NOBODY = ["--broker", "127.0.0.1:1"]  # no broker listens there


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is required, with good data."""
    x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "shard.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    monkeypatch.setenv("FLEXMOE_CACHE", str(tmp_path / "cache"))
    return [*NOBODY, "--id", "dev", "--data", str(tmp_path / "shard.npz")]


@pytest.mark.parametrize(
    ("more", "folder"),
    [
        ([], "cache/devices/default/dev"),
        (["--federation", "fed"], "cache/devices/fed/dev"),
        (["--cache", "own"], "own"),
        (["--no-cache"], None),
    ],
    ids=str,
)
def test_where_programs_are_kept(
    options: list[str],
    more: list[str],
    folder: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BrokerError, match="no MQTT broker answers"):
        run_device([*options, *more])
    made = {path.name for path in tmp_path.iterdir()} - {"shard.npz"}
    assert made == ({folder.partition("/")[0]} if folder else set())
    assert folder is None or (tmp_path / folder).is_dir()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--link", "two words"], "link name 'two words': expected 1 to 64 letters"),
        (["--id", "a/b"], "device name 'a/b'"),
        (["--federation", "+"], "federation name"),
        (["--board", "a board"], "board name 'a board'"),
        (["--time-scale", "0"], "--time-scale: expected a number above 0, got '0'"),
        (["--time-scale", "nan"], "--time-scale: expected a number above 0, got 'nan'"),
        (["--time-scale", "inf"], "--time-scale: expected a number above 0, got 'inf'"),
        (["--time-scale", "fast"], "--time-scale: expected a number above 0, got 'fast'"),
        (["--shape", "up=fast"], "shape of a link 'up=fast': expected numbers"),
        (["--shelf-mib", "0"], "--shelf-mib: expected a whole number above 0"),
        (["--cache", "here", "--no-cache"], "not allowed with argument"),
    ],
)
def test_nonsense_is_refused_in_one_line(options: list[str], more: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("+", "[+]")) as caught:
        run_device([*options, *more])
    assert "\n" not in str(caught.value)


def test_what_is_not_said() -> None:
    options = device_parser().parse_args([*NOBODY, "--id", "dev", "--data", "shard.npz"])
    assert (options.link, options.cache, options.no_cache, options.state) == ("", None, False, None)
    assert options.shelf_mib == 64
