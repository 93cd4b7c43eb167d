"""What a board is: what a device of this kind computes with, from published figures."""

from __future__ import annotations

from dataclasses import dataclass

from device_profiles.catalogue.figure import (
    NOT_NEGATIVE,
    POSITIVE,
    WHOLE,
    Figure,
    FigureKey,
    figures_of,
)

ARCHITECTURES = ("aarch64", "x86_64", "armv7", "armv6")


@dataclass(frozen=True)
class Board:
    """A kind of device. `BOARD_KEYS` says what each figure is.

    One that is not `supported` has no runtime of ours, `unsupported_because` says why; it is here
    to be compared with. `link` is the class of the link that such a board usually has, by name.
    """

    name: str
    title: str
    architecture: str
    supported: bool
    unsupported_because: str
    link: str
    cores: Figure
    clock_mhz: Figure
    ram_mib: Figure
    memory_mib: Figure
    integer_mips: Figure
    gemm_gflops: Figure
    memory_mb_s: Figure
    cpu_w: Figure
    idle_w: Figure | None = None

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures by name, with their units, as far as they are known."""
        return figures_of(self, BOARD_KEYS)


BOARD_KEYS = (
    FigureKey("cores", "cores", "Cores of the CPU.", WHOLE),
    FigureKey("clock_mhz", "clock, MHz", "The highest clock of a core, MHz.", POSITIVE),
    FigureKey("ram_mib", "RAM, MiB", "RAM of the board, MiB.", POSITIVE),
    FigureKey(
        "memory_mib",
        "memory for us, MiB",
        "What the system and other programs leave for a device of ours, MiB: its memory limit.",
        POSITIVE,
    ),
    FigureKey(
        "integer_mips",
        "integer, 7-zip MIPS",
        "Integer work of one core: the total rating of `7z b -mmt1`, MIPS.",
        POSITIVE,
    ),
    FigureKey(
        "gemm_gflops",
        "GEMM, GFLOP/s",
        "Matrix products of one core, fp32, by a library that is optimized for it, GFLOP/s.",
        POSITIVE,
    ),
    FigureKey("memory_mb_s", "memcpy, MB/s", "Copying memory, one core, MB/s.", POSITIVE),
    FigureKey(
        "cpu_w",
        "busy core, W",
        "What one busy core takes beyond the idle board, W: joules per second of CPU time.",
        NOT_NEGATIVE,
    ),
    FigureKey("idle_w", "idle board, W", "What the idle board takes, W.", NOT_NEGATIVE, True),
)
