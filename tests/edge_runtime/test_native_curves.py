"""The native trainer with whole models: what it computes is what eager PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.trainer import Batch, Rates
from tests.edge_runtime.assigned import EXPERTS, RATES, assigned
from tests.model_export.eager import BATCH, SPECS, EagerSubset, random_batch
from tests.native.exported import Export, make_export


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return make_export(tmp_path_factory)


@pytest.mark.parametrize("kernels", ["native", "stock"])
@pytest.mark.parametrize("name", ["digits", "har", "cifar"])
def test_loss_statistics_and_gradients(name: str, kernels: str, export: Export) -> None:
    trainer = assigned(NativeTrainer(threads=1), export(name, kernels), name)
    before = {n: w.copy() for n, w in trainer.weights().items()}
    eager = EagerSubset(SPECS[name], EXPERTS, before)
    batch = random_batch(name, seed=3, real=BATCH[name] - 1)
    loss, stats, gradients = eager.step(batch)
    tested = trainer.evaluate(batch)
    step = trainer.train_step(batch, Rates(learning_rate=1.0))
    for result in (tested, step):
        assert result.loss == pytest.approx(loss, abs=1e-5)
        np.testing.assert_allclose(result.stats, stats, atol=1e-5)
    for weight, after in trainer.weights().items():
        # Both sides are sums of float32; the weights' own rounding comes on top.
        np.testing.assert_allclose(
            before[weight] - after, gradients[weight], rtol=1e-5, atol=5e-7, err_msg=weight
        )


OPTIMIZERS: dict[str, tuple[Rates, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (Rates(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "momentum": (
        Rates(0.02, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.01),
    ),
    "adamw": (
        Rates(1e-3, weight_decay=0.02, optimizer="adamw"),
        lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.02),
    ),
    "clipped": (
        Rates(0.02, momentum=0.5, clip_norm=0.5),
        lambda p: torch.optim.SGD(p, 0.02, momentum=0.5),
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["digits", "har", "cifar"])
def test_a_training_curve(name: str, optimizer: str, export: Export) -> None:
    """100 steps follow eager PyTorch's within 1e-4."""
    rates, make = OPTIMIZERS[optimizer]
    trainer = assigned(NativeTrainer(threads=1), export(name), name)
    eager = EagerSubset(SPECS[name], EXPERTS, trainer.weights())
    torch_optimizer = make(eager.model.parameters())
    batches = [random_batch(name, seed) for seed in range(5)]
    losses: list[tuple[float, float]] = []
    norms = []
    for step in range(100):
        batch = batches[step % len(batches)]
        expected, _, _ = eager.step(batch)
        if rates.clip_norm:
            parameters = eager.model.parameters()
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, rates.clip_norm)))
        torch_optimizer.step()
        losses.append((trainer.train_step(batch, rates).loss, expected))
    ours, theirs = np.array(losses).T
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert theirs[-5:].mean() < 0.98 * theirs[:5].mean()
    assert not norms or max(norms) > rates.clip_norm


@pytest.mark.parametrize("name", ["digits", "har", "cifar"])
def test_micro_batches_are_one_batch(name: str, export: Export) -> None:
    """Three micro-batches, step by step, against one batch of all samples in eager PyTorch."""
    trainer = assigned(NativeTrainer(threads=1), export(name), name)
    eager = EagerSubset(SPECS[name], EXPERTS, trainer.weights())
    optimizer = torch.optim.SGD(eager.model.parameters(), 0.1, momentum=0.9)
    parts = [random_batch(name, seed) for seed in (1, 2, 3)]
    whole = Batch(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.sample_weight / 3 for part in parts]),
    )
    for _ in range(3):
        loss, stats, _ = eager.step(whole)
        optimizer.step()
        result = trainer.train_step(whole, RATES)
        assert result.loss == pytest.approx(loss, abs=1e-5)
        np.testing.assert_allclose(result.stats, stats, atol=1e-4)
    for weight, value in eager.model.named_parameters():
        np.testing.assert_allclose(
            trainer.weights()[weight], value.detach().numpy(), atol=1e-5, err_msg=weight
        )


def test_the_number_of_threads_does_not_matter(export: Export) -> None:
    batch, weights = random_batch("cifar", 1), []
    for threads in (1, 2, 3):
        trainer = assigned(NativeTrainer(threads), export("cifar"), "cifar")
        for _ in range(3):
            trainer.train_step(batch, RATES)
        weights.append({name: weight.copy() for name, weight in trainer.weights().items()})
    for other in weights[1:]:
        for name, weight in weights[0].items():
            np.testing.assert_array_equal(weight, other[name], err_msg=name)
