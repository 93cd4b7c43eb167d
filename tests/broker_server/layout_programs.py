"""Programs that need no export, for the tests of what the server does with them."""

from __future__ import annotations

from model_export.cache import ProgramCache
from model_export.models import ModelSpec
from model_export.program import Program, make_layout


class LayoutPrograms(ProgramCache):
    """The reference trainer's programs: their layouts, as JSON."""

    def __init__(self) -> None: ...

    def get(
        self,
        spec: ModelSpec,
        k: int,
        batch: int,
        role: str,
        kernels: str,
        *,
        balance: float = 0.0,
    ) -> Program:
        layout = make_layout(spec, k, batch, role, "stock")
        return Program(layout.to_json().encode(), layout, arena_bytes=1000)
