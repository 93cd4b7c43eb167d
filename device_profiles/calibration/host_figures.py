"""`HostFigures`: what one core of a machine computes and copies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class HostFigures:
    """A machine, measured by `calibration.measure`.

    `cpu` is what the machine calls itself, `cores` those that this process may use, `isa` the
    instruction set of our kernels. Of one thread: `integer_mips` on the scale of 7-zip's benchmark,
    `gemm_gflops` of fp32, `memory_mb_s` of copying, in 10^6 bytes a second, each byte counted once.
    """

    cpu: str
    architecture: str
    cores: int
    isa: str
    integer_mips: float
    gemm_gflops: float
    memory_mb_s: float

    def to_record(self) -> dict[str, Any]:
        """As `from_record` takes it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: object) -> HostFigures:
        """`ValueError` if it is not what `to_record` gives."""
        if not isinstance(record, Mapping) or set(record) != set(cls.__annotations__):
            raise ValueError("not the figures of a host")
        names = [record[key] for key in ("cpu", "architecture", "isa")]
        rates = [record[key] for key in ("integer_mips", "gemm_gflops", "memory_mb_s")]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("expected names")
        if not all(isinstance(rate, float) and 0 < rate < math.inf for rate in rates):
            raise ValueError("expected rates above 0")
        if type(record["cores"]) is not int or record["cores"] < 1:
            raise ValueError("expected a number of cores")
        return cls(**record)
