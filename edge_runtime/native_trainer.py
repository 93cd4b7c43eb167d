"""flexmoe's own runtime as a `Trainer`: C++, without PyTorch (docs/native.md)."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from edge_runtime.cgroup import read_limits
from edge_runtime.errors import FlexmoeError, ProgramError
from edge_runtime.layout import ProgramLayout
from edge_runtime.program_file import unseal
from edge_runtime.trainer import (
    Batch,
    MemoryNeed,
    Rates,
    StepResult,
    Weights,
    check_assignment,
    check_pair,
)

try:
    from edge_runtime.native import _native
except ImportError as error:
    raise FlexmoeError(
        f"the trainer 'native' needs flexmoe's extension module ({error}); "
        "reinstall flexmoe on this machine"
    ) from None


def default_threads() -> int:
    """The whole cores that the cgroup allows; 1 where it does not say."""
    return max(1, int(read_limits().cpu_cores or 1))


class NativeTrainer:
    """See `Trainer`. A step runs without the GIL.

    Memory is taken once: by `load`, and by the first step of a kind for the optimizer's state, the
    kernels' scratch and the sums of micro-batches. From then on a step allocates its result only.
    Stock programs apart, whose kernels allocate as they like.
    """

    name = "native"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = default_threads() if threads is None else threads
        self._session: _native.Session | None = None
        self._layout: ProgramLayout | None = None
        # The same rates come with every step of a round: they are converted once.
        self._rates: Rates | None = None
        self._native_rates: _native.Rates | None = None

    @property
    def layout(self) -> ProgramLayout:
        self._loaded()
        assert self._layout is not None
        return self._layout

    def memory_need(
        self, training: bytes, evaluation: bytes, rates: Rates, batch: int
    ) -> MemoryNeed:
        pair = unseal(training), unseal(evaluation)
        _read_layouts(*pair)
        need = _native.memory_need(*pair, _convert(rates), batch, self._threads)
        return MemoryNeed(
            programs_bytes=need["programs"],
            arena_bytes=need["arena"],
            weights_bytes=need["weights"],
            gradients_bytes=need["gradients"],
            optimizer_bytes=need["optimizer"],
            scratch_bytes=need["scratch"],
        )

    def load(self, training: bytes, evaluation: bytes) -> None:
        pair = unseal(training), unseal(evaluation)
        layout = _read_layouts(*pair)
        # A device has no memory for both: what was loaded goes once the new pair is known to fit.
        self._session = self._layout = None
        self._session = _native.Session(*pair, layout.classes, layout.experts, self._threads)
        self._layout = layout

    def assign(self, experts: list[int], weights: Weights) -> None:
        session = self._loaded()
        check_assignment(self.layout, experts, weights)
        session.begin(experts)
        for layout, held in zip(self.layout.weights, session.weights, strict=True):
            held[...] = weights[layout.name]

    def weights(self) -> dict[str, NDArray[np.float32]]:
        names = (weight.name for weight in self.layout.weights)
        return dict(zip(names, self._loaded().weights, strict=True))

    def train_step(self, batch: Batch, rates: Rates) -> StepResult:
        if rates is not self._rates:
            self._rates, self._native_rates = rates, _convert(rates)
        assert self._native_rates is not None
        loss, stats = self._loaded().train_step(
            batch.x, batch.y, batch.sample_weight, self._native_rates
        )
        return StepResult(loss, stats)

    def evaluate(self, batch: Batch) -> StepResult:
        loss, stats = self._loaded().evaluate(batch.x, batch.y, batch.sample_weight)
        return StepResult(loss, stats)

    def memory(self) -> dict[str, int]:
        """Bytes held by kind: programs, arena, weights, gradients, optimizer, scratch."""
        return self._loaded().memory

    def _loaded(self) -> _native.Session:
        if self._session is None:
            raise ProgramError("no program is loaded; call load() first")
        return self._session


def _convert(rates: Rates) -> _native.Rates:
    return _native.Rates(**asdict(rates))


def _read_layouts(training: memoryview, evaluation: memoryview) -> ProgramLayout:
    """The training program's layout; `ProgramError` unless the two are a pair."""
    layouts = [_read_layout(program) for program in (training, evaluation)]
    check_pair(*layouts)
    return layouts[0]


def _read_layout(program: memoryview) -> ProgramLayout:
    facts = _native.describe(program)
    layout = ProgramLayout.from_json(facts["layout"])
    shapes = [weight.shape for weight in layout.weights] + [(layout.batch, *layout.shape)]
    expected = [f"float32 {list(shape)}" for shape in shapes]
    expected += [f"int64 [{layout.batch}]", f"int64 [{layout.k}]", f"float32 [{layout.batch}]"]
    if facts["inputs"] != expected:
        raise ProgramError("the program's layout does not fit its inputs; export it again")
    return layout
