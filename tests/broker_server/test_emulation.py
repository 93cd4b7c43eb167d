"""An experiment's fleets on a host that can do more, or less."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from broker_server import emulation
from broker_server.emulation import Emulation, opened, plan_emulation
from broker_server.emulation_tables import emulation_tables
from broker_server.experiment import Experiment
from device_profiles.calibration.host_figures import HostFigures
from device_profiles.emulation.abilities import Abilities
from edge_runtime.errors import EmulationError

HOST = HostFigures("test", "x86_64", 2, "avx2", 4000.0, 100.0, 10_000.0)
ALL = Abilities(
    groups="cgroup v2",
    cpu=True,
    memory=True,
    swap_off=True,
    pids=True,
    cpuset=True,
    namespaces=True,
    tbf=True,
    netem=True,
    why={},
)
NOTHING = Abilities(
    groups="",
    cpu=False,
    memory=False,
    swap_off=False,
    pids=False,
    cpuset=False,
    namespaces=False,
    tbf=False,
    netem=False,
    why={"cpu": "not root", "memory": "not root"},
)


def experiment(**settings: object) -> Experiment:
    return Experiment.model_validate(
        {
            "data": {"dataset": "digits"},
            "fleet": [
                {"profile": "pi-4b", "link": "wifi", "count": 2},
                {"profile": "pi-zero-2w", "link": "nb-iot", "threads": 2, "leave": "cut"},
            ],
            "emulation": settings,
        }
    )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Abilities:
    can: Abilities = getattr(request, "param", NOTHING)
    monkeypatch.setattr(emulation, "find_abilities", lambda: can)
    monkeypatch.setattr(emulation.calibration, "of_this_host", lambda cache: HOST)
    return can


def test_strict_does_not_start_where_the_kernel_cannot_hold_a_board(host: Abilities) -> None:
    with pytest.raises(EmulationError) as error:
        plan_emulation(experiment())
    said = str(error.value)
    assert "cpu: not root" in said and "memory: not root" in said
    assert 'emulation.enforce = "best-effort"' in said and len(said.splitlines()) == 1


def test_time_cannot_be_scaled_where_nothing_holds_a_device(host: Abilities) -> None:
    for enforce in ("strict", "best-effort"):
        with pytest.raises(EmulationError, match=r"time_scale = 1\.5 needs CPU .*cpu: not root"):
            plan_emulation(experiment(enforce=enforce, time_scale=1.5))
    with pytest.raises(ValidationError, match=r"emulation\.time_scale"):
        experiment(enforce="off", time_scale=7.0)


def test_best_effort_goes_on_and_every_report_says_what_is_not_enforced(host: Abilities) -> None:
    planned = plan_emulation(experiment(enforce="best-effort", check=False))
    with opened(planned) as running:
        assert not running.to_check
        assert running.broker_host == "127.0.0.1"
        facts = running.closing_facts()
        (one, _, other) = (
            running._member(plan, Path("x.npz"), Path("cache")) for plan in running.plans
        )
    assert facts["not_enforced"] == ["cpu: not root", "memory: not root"]
    assert facts["enforcement"]["link"] == "emulated in user space"
    lines = running.lines()
    assert "NOT ENFORCED: cpu: not root" in lines
    assert "NOT ENFORCED: cpu: not root" in text({"emulation": facts})
    # Links are emulated by the devices themselves.
    assert one.place.netns is None and "--shape" in one.place.options
    assert "--turns" not in one.place.options
    assert list(other.options[:6]) == [
        *("--board", "pi-zero-2w", "--link", "nb-iot"),
        *("--threads", "2"),
    ]
    assert list(other.options[6:]) == ["--cache", "cache/device-02"]
    assert other.cut and not one.cut


def text(facts: Mapping[str, object]) -> str:
    return "\n".join(str(line) for line in emulation_tables(facts))


def test_off_starts_plain_processes_that_still_come_and_go_and_says_so(host: Abilities) -> None:
    planned = plan_emulation(experiment(enforce="off"))
    with opened(planned) as running:
        assert running.testbed is None and running.time_scale == 1.0
        (one, *_) = (running._member(p, Path("x.npz"), Path("cache")) for p in running.plans)
        assert one.place.options == () and list(one.options)[:2] == ["--board", "pi-4b"]
        assert any("nothing is enforced" in line for line in running.lines())


def test_without_fleets_there_is_nothing_to_say() -> None:
    plain = plan_emulation(Experiment.model_validate({"train": {"threads": 2}}))
    assert (plain.lines(), plain.facts(), plain.closing_facts()) == ([], {}, {})
    assert emulation_tables({}) == []
    (member, *_) = plain._plain_members({"device-00": Path("x.npz")})
    assert list(member.options) == ["--threads", "2"]


@pytest.mark.parametrize("host", [ALL], indirect=True)
def test_strict_plans_every_device_of_every_fleet(host: Abilities) -> None:
    planned = plan_emulation(experiment(time_scale=1.5))
    assert [plan.name for plan in planned.plans] == ["device-00", "device-01", "device-02"]
    assert planned.not_enforced == []
    facts = planned.facts()
    assert facts["time_scale"] == 1.5 and facts["host"]["cpu"] == "test"
    assert [(row["board"], row["count"]) for row in facts["fleets"]] == [
        ("pi-4b", 2),
        ("pi-zero-2w", 1),
    ]
    assert facts["enforcement"] == {
        "cpu": "cgroup v2",
        "memory": "cgroup v2",
        "link": "tc tbf",
        "delay": "tc netem",
    }


@pytest.mark.parametrize("host", [ALL], indirect=True)
def test_links_to_a_broker_of_others_are_emulated_in_user_space(host: Abilities) -> None:
    elsewhere = experiment().model_copy(
        update={"broker": experiment().broker.model_copy(update={"address": "broker.lan:1883"})}
    )
    planned: Emulation = plan_emulation(elsewhere)
    assert planned.facts()["enforcement"]["link"] == "emulated in user space"
