"""`[[fleet]]` and `[emulation]` as users write them, right and wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_server.config import load_experiment, to_toml
from broker_server.experiment import Experiment
from edge_runtime.errors import ConfigError

FLEETS = """
[[fleet]]
profile = "pi-zero-2w"
count = 3
[[fleet]]
profile = "boards/mine.toml"
link = "slow.toml"
experts_per_device = 5
availability = "arrive(0,60) + trace ( there(1).csv )"
"""
TRACE = "time,device,state\n0,3,on\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "there(1).csv").write_text(TRACE)
    return tmp_path / "fleets.toml"


def load(file: Path, text: str = FLEETS, *overrides: str) -> Experiment:
    file.write_text(text)
    return load_experiment(file, overrides)


def test_devices_are_those_of_all_fleets_and_files_start_at_the_experiment(file: Path) -> None:
    experiment = load(file)
    assert experiment.data.devices == 4
    assert experiment.emulated
    second = experiment.fleet[1]
    assert second.profile == str(file.parent / "boards/mine.toml")
    assert second.link == str(file.parent / "slow.toml")
    assert str(file.parent / "there(1).csv") in second.availability
    assert experiment.fleet[0].profile == "pi-zero-2w"


def test_what_is_written_out_reads_back(file: Path, tmp_path: Path) -> None:
    experiment = load(file)
    again = tmp_path / "again" / "written.toml"
    again.parent.mkdir()
    assert load(again, to_toml(experiment)) == experiment


def test_experts_are_asked_by_a_devices_name_wherever_it_stands(file: Path) -> None:
    experiment = load(file, FLEETS, "model.experts_per_device=[1,2]")
    asked = [experiment.experts_asked(f"device-0{number}", 7) for number in range(4)]
    assert asked == [1, 2, 1, 5]
    assert experiment.experts_asked("pump", 1) == 2
    assert experiment.experts_asked("device-77", 0) == 1


def test_an_override_changes_one_fleet(file: Path) -> None:
    experiment = load(file, FLEETS, "fleet.0.count=5", "fleet.1.memory_mib=48")
    assert [fleet.count for fleet in experiment.fleet] == [5, 1]
    assert experiment.data.devices == 6
    assert experiment.fleet[1].memory_mib == 48


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        (FLEETS, ["fleet.0.count=0"], "fleet.0.count: expected a whole number >= 1"),
        (FLEETS, ["fleet.0.count=many"], "fleet.0.count: expected a whole number >= 1"),
        (FLEETS, ["fleet.2.count=1"], "expected a table's number, from 0 to 1"),
        (FLEETS, ["fleet.x.count=1"], "expected a table's number, from 0 to 1"),
        (FLEETS, ["fleet.0=1"], "expected a table's number, from 0 to 1"),
        (FLEETS, ["fleet.0.size=1"], "unknown key fleet.0.size; "),
        (FLEETS, ["fleet.0.profile=7"], None),
        (FLEETS, ["fleet.0.leave=loudly"], 'fleet.0.leave: expected "goodbye" or "cut"'),
        (FLEETS, ["fleet.0.availability=often"], "fleet.0.availability: expected always"),
        (FLEETS, ["fleet.1.availability=trace(none.csv)"], "none.csv"),
        (FLEETS, ["fleet.1.experts_per_device=9"], "at most model.experts = 8"),
        (FLEETS, ["data.devices=5"], "data.devices: expected 4, the devices of all fleets"),
        (FLEETS, ["wire.links=wifi"], "wire.links: expected nothing"),
        (FLEETS, ["train.threads=2"], "train.threads: expected 0"),
        (FLEETS, ["emulation.check=yes"], "emulation.check: expected true or false"),
        (FLEETS, ["emulation.cpu=fast"], 'emulation.cpu: expected "phases" or "integer"'),
        (FLEETS, ["emulation.time_scale=0"], "emulation.time_scale: expected a number > 0"),
        (FLEETS, ["emulation.enforce=no"], 'emulation.enforce: expected "strict" or'),
        (
            FLEETS,
            ["emulation.enforce=off", "emulation.time_scale=2"],
            "emulation.time_scale: expected 1",
        ),
        ("fleet = 3\n", [], "fleet: expected a list of tables"),
        ("fleet = [1]\n", [], "fleet.0: expected a table"),
        ("fleet = [1]\n", ["fleet.0.count=3"], "expected item 0 to be a table"),
        ("[[fleet]]\ncount = 3\n", [], "fleet.0.profile: expected a text, got nothing"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_key(
    text: str, overrides: list[str], says: str | None, file: Path
) -> None:
    if says is None:  # a number may be the name of a board, as far as the file goes
        assert load(file, text, *overrides).fleet[0].profile == "7"
        return
    with pytest.raises(ConfigError) as error:
        load(file, text, *overrides)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
