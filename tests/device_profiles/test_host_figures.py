"""`HostFigures`: kept as a record, and only a sound record is taken back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.calibration.host_figures import HostFigures

RATES = st.floats(min_value=1e-3, max_value=1e9)
HOSTS = st.builds(
    HostFigures,
    cpu=st.text(),
    architecture=st.text(),
    cores=st.integers(1, 512),
    isa=st.text(),
    integer_mips=RATES,
    gemm_gflops=RATES,
    memory_mb_s=RATES,
)
HOST = HostFigures("Some CPU", "x86_64", 2, "avx2", 4000.0, 100.0, 9000.0)


@given(HOSTS)
def test_a_record_survives_json(host: HostFigures) -> None:
    assert HostFigures.from_record(json.loads(json.dumps(host.to_record()))) == host


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": 3},
        {"isa": None},
        {"cores": 0},
        {"cores": 1.5},
        {"cores": True},
        {"integer_mips": 0.0},
        {"gemm_gflops": -1.0},
        {"memory_mb_s": math.inf},
        {"gemm_gflops": math.nan},
        {"integer_mips": "4000"},
        {"new": 1},
    ],
    ids=str,
)
def test_a_record_that_is_not_sound_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|not the figures"):
        HostFigures.from_record(HOST.to_record() | change)


@pytest.mark.parametrize("record", [None, [], 5, {}, {"cpu": "Some CPU"}], ids=str)
def test_what_is_no_record_is_refused(record: object) -> None:
    with pytest.raises(ValueError, match="not the figures"):
        HostFigures.from_record(record)
