"""Plans of a fleet: quotas, shapes and limits by board, and what cannot be planned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from device_profiles.calibration.host_figures import HostFigures
from device_profiles.catalogue.profiles import find_board, find_link
from device_profiles.fleet.device_names import device_names, number_of
from device_profiles.fleet.fleet_plan import NEEDED_MIB, DevicePlan, Leave, plan_fleet
from edge_runtime.errors import ConfigError, EmulationError, FlexmoeError

HOST = HostFigures(
    cpu="test",
    architecture="x86_64",
    cores=2,
    isa="avx2",
    integer_mips=4000.0,
    gemm_gflops=100.0,
    memory_mb_s=10_000.0,
)


@dataclass(frozen=True)
class Spec:
    profile: str = "pi-4b"
    link: str = ""
    count: int = 1
    memory_mib: int = 64
    threads: int = 1
    availability: str = "always"
    leave: Leave = "goodbye"


def plans(*specs: Spec, **settings: object) -> list[DevicePlan]:
    names = device_names(sum(spec.count for spec in specs))
    return plan_fleet(specs, names, HOST, **settings)  # type: ignore[arg-type]


def test_devices_are_planned_fleet_by_fleet_in_order() -> None:
    made = plans(Spec(count=2), Spec("pi-zero-2w", "nb-iot", memory_mib=0))
    assert [plan.name for plan in made] == ["device-00", "device-01", "device-02"]
    assert [plan.board.name for plan in made] == ["pi-4b", "pi-4b", "pi-zero-2w"]
    assert made[0].link.name == find_board("pi-4b").link
    assert made[2].link.name == "nb-iot"
    assert made[2].memory_mib == find_board("pi-zero-2w").memory_mib.value
    assert made[0].kind == made[0].kind != made[2].kind
    assert made[0].shape.seed != made[1].shape.seed


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_quotas_are_the_boards_ratios_times_threads_and_time_scale(
    threads: int, scale: float
) -> None:
    board, link = find_board("pi-4b"), find_link("wifi")
    (plan,) = plans(Spec(threads=threads, link="wifi"), time_scale=scale)
    integer, gemm = board.integer_mips.value / 4000, board.gemm_gflops.value / 100
    assert plan.quotas["work"].cores == pytest.approx(integer * threads * scale)
    assert plan.quotas["train"].cores == pytest.approx(gemm * threads * scale)
    assert plan.ratios == pytest.approx({"work": integer, "train": gemm})
    assert plan.shape.up_bps == pytest.approx(link.up_rate.value * scale)
    assert plan.shape.delay_s == pytest.approx(link.latency_s.value / scale)
    assert plan.shape.loss == link.loss.value


def test_one_ratio_may_hold_all_the_time() -> None:
    for mode, value in (("integer", "integer_mips"), ("gemm", "gemm_gflops")):
        (plan,) = plans(Spec(), cpu=mode)
        share = getattr(find_board("pi-4b"), value).value / getattr(HOST, value)
        assert plan.ratios == pytest.approx({"work": share, "train": share})


def test_without_a_host_nothing_is_enforced_and_nothing_too_large() -> None:
    (plan,) = plan_fleet([Spec(memory_mib=10**6, threads=4)], ["device-00"], None)
    assert plan.quotas == {} and plan.memory_mib == 10**6


@pytest.mark.parametrize(
    ("spec", "settings", "kind", "says"),
    [
        (Spec("pi-4c"), {}, ConfigError, "pi-4b"),
        (Spec(link="wify"), {}, ConfigError, "wifi"),
        (Spec("pi-zero-w"), {}, ConfigError, "pi-zero-w: flexmoe does not run on this board"),
        (Spec(threads=5), {}, ConfigError, "pi-4b: expected 1 to 4 threads"),
        (Spec(threads=4), {"time_scale": 2.0}, EmulationError, "largest time_scale that fits is"),
        (Spec(memory_mib=NEEDED_MIB - 1), {}, ConfigError, f"under the {NEEDED_MIB} MiB"),
        (Spec(memory_mib=513), {"host_memory_mib": 512}, ConfigError, "more than the 512 MiB"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_line(
    spec: Spec, settings: dict[str, object], kind: type[FlexmoeError], says: str
) -> None:
    with pytest.raises(kind) as error:
        plans(spec, **settings)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_trace_that_names_none_of_its_fleet_is_an_error(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("time,device,state\n0,device-07,on\n5,device-07,off\n")
    spec = Spec(count=2, availability=f"trace({trace})")
    with pytest.raises(ConfigError, match="names none of the devices device-00 to device-01"):
        plans(spec)
    trace.write_text("time,device,state\n0,1,on\n5,1,off\n")
    assert len(plans(spec)) == 2


def test_names_and_numbers_of_devices_belong_together() -> None:
    assert device_names(2) == ["device-00", "device-01"]
    assert device_names(101)[100] == "device-100"
    assert [number_of(name) for name in device_names(101)] == list(range(101))
    for other in ("device-1", "device-xx", "pump", "device-00 ", "device-٠٠"):
        assert number_of(other) is None
