"""The stock ExecuTorch Python runtime as a `Trainer`; the device's only module that imports torch.

One per process: two of them in two threads deadlock. With torch loaded a device holds about 250
MiB, so this serves emulated fleets, big boards and the tests, where it is the oracle for other
trainers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import FlexmoeError, ProgramError
from edge_runtime.layout import LAYOUT_METHOD, ProgramLayout
from edge_runtime.optimizer import Optimizer
from edge_runtime.program_file import unseal
from edge_runtime.trainer import (
    Batch,
    MemoryNeed,
    Rates,
    StepResult,
    Weights,
    check_assignment,
    check_pair,
    micro_batches,
)

try:
    import torch

    # What `executorch.runtime` wraps. Importing that package also imports the exporter, which takes
    # 3 s and 100 MB more on every device.
    from executorch.extension.pybindings import _C as runtime
except ImportError as error:
    raise FlexmoeError(
        f"the trainer 'executorch' needs torch and executorch ({error}); "
        "install them with: pip install 'flexmoe[server]'"
    ) from None
try:
    # The stock runtime's Python does not say how much memory a program plans; ours does.
    from edge_runtime.native import _native
except ImportError as error:
    raise FlexmoeError(
        f"the trainer 'executorch' reads programs with flexmoe's extension module ({error}); "
        "reinstall flexmoe on this machine"
    ) from None


class ExecuTorchTrainer:
    """See `Trainer`. Weights live in numpy arrays that the runtime reads without a copy."""

    name = "executorch"

    def __init__(self) -> None:
        # One thread is the fastest for models of this size, and the only repeatable choice.
        torch.set_num_threads(1)
        self._training: _LoadedProgram | None = None
        self._evaluation: _LoadedProgram | None = None
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._inputs: list[Any] = []
        self._experts = torch.zeros(0, dtype=torch.int64)
        self._optimizer: Optimizer | None = None  # None until experts and weights are assigned

    @property
    def layout(self) -> ProgramLayout:
        return self._loaded(self._training).layout

    def memory_need(
        self, training: bytes, evaluation: bytes, rates: Rates, batch: int
    ) -> MemoryNeed:
        facts = [_native.describe(unseal(file)) for file in (training, evaluation)]
        layout, other = (ProgramLayout.from_json(each["layout"]) for each in facts)
        check_pair(layout, other)
        return MemoryNeed(
            programs_bytes=len(training) + len(evaluation),
            arena_bytes=sum(each["arena_bytes"] for each in facts),
            weights_bytes=layout.weights_bytes,
            gradients_bytes=layout.weights_bytes if batch > layout.batch else 0,
            optimizer_bytes=(rates.moments + 1) * layout.weights_bytes,
        )

    def load(self, training: bytes, evaluation: bytes) -> None:
        train, test = _LoadedProgram(training), _LoadedProgram(evaluation)
        check_pair(train.layout, test.layout)
        self._training, self._evaluation = train, test
        self._optimizer = None
        self._weights = {
            weight.name: np.zeros(weight.shape, np.float32) for weight in train.layout.weights
        }
        # from_numpy shares memory, so in-place updates of the arrays are what the program reads.
        self._inputs = [torch.from_numpy(weight) for weight in self._weights.values()]

    def assign(self, experts: list[int], weights: Weights) -> None:
        check_assignment(self.layout, experts, weights)
        for name, held in self._weights.items():
            held[...] = weights[name]
        self._experts = torch.tensor(experts, dtype=torch.int64)
        self._optimizer = Optimizer(list(self._weights.values()))

    def weights(self) -> dict[str, NDArray[np.float32]]:
        self._loaded(self._training)
        return dict(self._weights)

    def train_step(self, batch: Batch, rates: Rates) -> StepResult:
        program = self._loaded(self._training)
        gradients: list[NDArray[np.float32]] = []
        loss, stats = 0.0, np.zeros((program.layout.k, 3), np.float32)
        for piece in micro_batches(batch, program.layout.batch):
            outputs = self._run(program, piece)
            result = _step_result(outputs)
            loss, stats = loss + result.loss, stats + result.stats
            views = [gradient.numpy() for gradient in outputs[2:]]
            # The next run uses the runtime's memory again: the sum needs arrays of its own.
            if gradients:
                for total, view in zip(gradients, views, strict=True):
                    total += view
            else:
                gradients = views if piece.y.size == batch.y.size else [g.copy() for g in views]
        assert self._optimizer is not None  # or _run had raised
        self._optimizer.step(gradients, rates)
        return StepResult(loss, stats)

    def evaluate(self, batch: Batch) -> StepResult:
        return _step_result(self._run(self._loaded(self._evaluation), batch))

    def _run(self, program: _LoadedProgram, batch: Batch) -> list[Any]:
        if self._optimizer is None:
            raise ProgramError("no weights are assigned; call assign() after load()")
        inputs = [
            *self._inputs,
            torch.from_numpy(batch.x),
            torch.from_numpy(batch.y),
            self._experts,
            torch.from_numpy(batch.sample_weight),
        ]
        try:
            return list(program.method(inputs))
        except RuntimeError as error:
            raise ProgramError(f"the program failed: {error}") from None

    @staticmethod
    def _loaded(program: _LoadedProgram | None) -> _LoadedProgram:
        if program is None:
            raise ProgramError("no program is loaded; call load() first")
        return program


class _LoadedProgram:
    """A program in the runtime. Keeps the bytes alive: the runtime only borrows them."""

    def __init__(self, file: bytes) -> None:
        self._data = data = bytes(unseal(file))
        try:
            self._program = runtime._load_program_from_buffer(
                data, program_verification=runtime.Verification.InternalConsistency
            )
            text = self._program.load_method(LAYOUT_METHOD)([])[0]
            self.layout = ProgramLayout.from_json(str(text))
            if self.layout.kernels != "stock":
                raise ProgramError(
                    "the program is made for flexmoe's own runtime; "
                    "run this device with --trainer native"
                )
            self.method = self._program.load_method("forward")
        except (RuntimeError, ValueError, IndexError, AttributeError) as error:
            raise ProgramError(
                f"not a flexmoe program of this ExecuTorch version ({error}); export it again"
            ) from None


def _step_result(outputs: list[Any]) -> StepResult:
    return StepResult(loss=float(outputs[0]), stats=outputs[1].numpy().copy())
