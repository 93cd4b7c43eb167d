"""A board's quota: exact within rounding, acceptable to the kernel, or an error that helps."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from device_profiles.calibration.host_figures import HostFigures
from device_profiles.calibration.quota import (
    LEAST_CORES,
    CpuQuota,
    Ratio,
    largest_time_scale,
    of_board,
    of_cores,
    ratio,
)
from device_profiles.catalogue.board import Board
from device_profiles.catalogue.figure import Figure
from edge_runtime.errors import ConfigError, EmulationError

HOST = HostFigures("Some CPU", "x86_64", 2, "avx2", 4000.0, 100.0, 9000.0)
SOME = Figure(1.0, "somewhere")
BOARD = Board(
    name="board",
    title="A board",
    architecture="aarch64",
    supported=True,
    unsupported_because="",
    link="wifi",
    cores=Figure(4, "its maker"),
    clock_mhz=SOME,
    ram_mib=SOME,
    memory_mib=SOME,
    integer_mips=Figure(800, "sbc-bench"),
    gemm_gflops=Figure(4, "estimated", True),
    memory_mb_s=SOME,
    cpu_w=SOME,
)
KINDS: tuple[Ratio, ...] = ("integer", "gemm")
kinds = st.sampled_from(KINDS)


def board(integer_mips: float = 800, gemm_gflops: float = 4, cores: int = 4) -> Board:
    return replace(
        BOARD,
        cores=Figure(cores, ""),
        integer_mips=Figure(integer_mips, ""),
        gemm_gflops=Figure(gemm_gflops, ""),
    )


def test_ratios_are_those_of_one_core_by_each_kind_of_work() -> None:
    assert ratio(BOARD, HOST, "integer") == pytest.approx(0.2)
    assert ratio(BOARD, HOST, "gemm") == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("threads", "kind", "time_scale", "quota_us", "period_us"),
    [
        (1, "integer", 1.0, 2000, 10_000),
        (4, "integer", 1.0, 8000, 10_000),
        (2, "integer", 5.0, 20_000, 10_000),
        (1, "gemm", 1.0, 1000, 25_000),  # 400 of 10,000 is under the kernel's least
        (4, "gemm", 1.0, 1600, 10_000),
    ],
)
def test_a_quota_is_for_the_threads_and_the_time_scale(
    threads: int, kind: Ratio, time_scale: float, quota_us: int, period_us: int
) -> None:
    quota = of_board(BOARD, HOST, threads, kind, time_scale)
    assert (quota.quota_us, quota.period_us) == (quota_us, period_us)


@given(cores=st.floats(LEAST_CORES, 512))
def test_the_kernel_takes_every_quota_and_its_share_is_exact_within_rounding(cores: float) -> None:
    quota = of_cores(cores)
    assert quota.cores == cores
    assert quota.quota_us >= 1000
    assert 10_000 <= quota.period_us <= 1_000_000
    got = quota.quota_us / quota.period_us
    # Half a microsecond of the quota, or of the period where that is what was chosen.
    assert abs(got - cores) <= 0.5 * max(1.0, cores) / quota.period_us + 1e-12
    assert abs(got / cores - 1) <= 0.000_501


@given(st.floats(1e-9, LEAST_CORES, exclude_max=True))
def test_what_the_kernel_would_refuse_is_an_error(cores: float) -> None:
    with pytest.raises(EmulationError, match=r"kernel's least, 0\.001"):
        of_cores(cores)


@given(
    kind=kinds,
    mips=st.floats(10, 20_000),
    gflops=st.floats(0.1, 500),
    threads=st.integers(1, 8),
    cores=st.integers(1, 64),
    time_scale=st.floats(0.01, 100),
)
def test_a_board_that_fits_gets_its_share_and_one_that_does_not_the_scale_that_does(
    kind: Ratio, mips: float, gflops: float, threads: int, cores: int, time_scale: float
) -> None:
    host, it = replace(HOST, cores=cores), board(mips, gflops, cores=8)
    share = {"integer": mips / 4000, "gemm": gflops / 100}[kind]
    largest = largest_time_scale(it, host, threads, kind)
    true_largest = min(1 / share, cores / share / threads)
    assert largest <= true_largest * (1 + 1e-9)
    assert largest == pytest.approx(true_largest, rel=0.0101)
    assume(share * threads * time_scale >= LEAST_CORES)
    if share * time_scale <= 1 and share * threads * time_scale <= cores:
        quota = of_board(it, host, threads, kind, time_scale)
        assert quota.cores == pytest.approx(share * threads * time_scale)
        return
    with pytest.raises(EmulationError) as caught:
        of_board(it, host, threads, kind, time_scale)
    named = float(re.findall(r"largest time_scale that fits is (\S+)$", str(caught.value))[0])
    assert named == pytest.approx(largest, rel=1e-5)
    if share * threads * named >= LEAST_CORES:
        of_board(it, host, threads, kind, named)  # it does fit


def test_a_thread_that_needs_more_than_a_core_does_not_fit() -> None:
    with pytest.raises(EmulationError) as caught:
        of_board(board(integer_mips=4400), HOST, 1, "integer", 2.0)
    assert str(caught.value) == (
        "board: a thread needs 2.20 of a core of this host (integer) at time_scale 2; the largest "
        "time_scale that fits is 0.909"
    )


def test_threads_that_need_more_than_all_cores_do_not_fit() -> None:
    with pytest.raises(EmulationError) as caught:
        of_board(board(gemm_gflops=75), HOST, 4, "gemm")
    assert str(caught.value) == (
        "board: 4 threads need 3.00 cores (gemm), this host has 2 at time_scale 1; the largest "
        "time_scale that fits is 0.666"
    )


def test_a_share_under_the_kernels_least_names_the_smallest_scale() -> None:
    slow = board(gemm_gflops=0.03)
    with pytest.raises(EmulationError, match=r"smallest time_scale that fits is 3\.34$"):
        of_board(slow, HOST, 1, "gemm")
    assert of_board(slow, HOST, 1, "gemm", 3.34).cores >= LEAST_CORES


@pytest.mark.parametrize("threads", [0, 5])
def test_threads_are_those_of_the_boards_cores(threads: int) -> None:
    with pytest.raises(ConfigError, match=f"expected 1 to 4 threads.* got {threads};"):
        of_board(BOARD, HOST, threads, "integer")


@pytest.mark.parametrize("time_scale", [0.0, -1.0, math.inf, math.nan])
def test_a_time_scale_is_a_number_above_0(time_scale: float) -> None:
    with pytest.raises(ConfigError, match="time_scale: expected a number above 0"):
        of_board(BOARD, HOST, 1, "integer", time_scale)


def test_a_quota_says_its_microseconds() -> None:
    assert CpuQuota(0.25).quota_us == 2500
    assert CpuQuota(0.25, 40_000).quota_us == 10_000
