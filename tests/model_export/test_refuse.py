"""Models that no device could train, or would train wrongly, are refused with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edge_runtime.errors import ProgramError
from model_export.program import export_program
from tests.model_export import custom_models
from tests.model_export.custom_models import WIDTH, Custom, flat, images, register

ELSE = "use the native trainer, or in the model "
CASES: dict[str, tuple[Custom, str, str]] = {
    "max_pool": (
        images(set(), lambda: nn.MaxPool2d(2)),
        "stock",
        f"max_pool2d has a wrong gradient; {ELSE}a strided convolution, or reshape and amax",
    ),
    "avg_pool": (
        images(set(), lambda: nn.AvgPool2d(2)),
        "stock",
        f"there is no aten::avg_pool2d_backward.grad_input; {ELSE}other layers",
    ),
    "uneven_pool": (
        images(set(), lambda: nn.AdaptiveAvgPool2d(3)),
        "native",
        "there is no aten::_adaptive_avg_pool2d_backward.out; use other layers",
    ),
    "sequence": (
        Custom((3, 9), lambda: [nn.Conv1d(3, WIDTH, 3)], set()),
        "stock",
        f"not 2-D have no gradient; {ELSE}Conv2d, of height 1 for sequences",
    ),
    "transposed": (
        images(set(), lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 2)),
        "native",
        "transposed convolutions and those that are not 2-D have no gradient; use Conv2d",
    ),
    "dropout": (
        flat(set(), lambda: nn.Dropout(0.5)),
        "native",
        "Missing out variants: {'aten::bernoulli'}",
    ),
}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Custom, str], str]:
    """Gives why a model is refused, which must be one line that names it."""

    def why(custom: Custom, kernels: str) -> str:
        monkeypatch.setitem(custom_models.CUSTOM, "mine", custom)
        with pytest.raises(ProgramError, match="cannot export model 'mine'") as caught:
            export_program(register("mine", monkeypatch), 2, 4, "train", kernels)
        text = str(caught.value)
        assert "\n" not in text
        return text

    return why


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_trained(case: str, refused: Callable[[Custom, str], str]) -> None:
    custom, kernels, why = CASES[case]
    text = refused(custom, kernels)
    assert why in text and f" for {kernels} kernels: " in text


@pytest.mark.parametrize("kernels", ["native", "stock"])
def test_a_model_with_state(kernels: str, refused: Callable[[Custom, str], str]) -> None:
    text = refused(images(set(), lambda: nn.BatchNorm2d(WIDTH)), kernels)
    assert "it keeps 'backbone.1.running_mean' beside its weights" in text
    assert "use GroupNorm for BatchNorm" in text


class Noise(nn.Module):
    """A constant that is another in each model."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.randn(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise


@pytest.mark.parametrize("kernels", ["native", "stock"])
def test_a_random_constant(kernels: str, refused: Callable[[Custom, str], str]) -> None:
    """The server's model would have another than the devices' programs."""
    text = refused(flat(set(), Noise), kernels)
    assert "it holds a tensor of shape [6] that is random" in text and "nn.Parameter" in text


def test_a_wrong_gradient_does_not_matter_to_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = register("max_pool", monkeypatch)
    assert export_program(spec, 1, 2, "evaluate", "stock").layout.role == "evaluate"
