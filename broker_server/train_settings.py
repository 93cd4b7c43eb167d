"""The section of an experiment that says how a device trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from broker_server.field_types import MOST, Section
from edge_runtime.trainer import OptimizerName, Rates
from edge_runtime.trainers import MAX_THREADS


class Train(Section):
    """How a device trains in a round."""

    epochs: int = Field(default=5, ge=1, le=MOST, description="Local epochs a round.")
    batch: int = Field(default=32, ge=1, le=MOST, description="Samples a step.")
    micro_batch: int = Field(
        default=0,
        ge=0,
        le=MOST,
        description="Samples that a device computes at once; their gradients are summed up to the "
        "step's. Fewer take less memory, the result is the same (but for a balance term, which "
        "sees one micro-batch at a time). A divisor of batch; 0: all.",
    )
    optimizer: OptimizerName = Field(
        default="sgd", description="SGD with momentum, or AdamW, as in PyTorch."
    )
    learning_rate: float = Field(default=0.05, gt=0, description="Step size of the optimizer.")
    learning_rate_decay: float = Field(
        default=1.0, gt=0, le=1, description="Factor on the learning rate after each round."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(
        default=0.0, ge=0, description="L2 penalty of SGD; decoupled weight decay of AdamW."
    )
    beta1: float = Field(
        default=0.9, ge=0, lt=1, description="Decay of AdamW's mean of the gradients."
    )
    beta2: float = Field(
        default=0.999, ge=0, lt=1, description="Decay of AdamW's mean of their squares."
    )
    epsilon: float = Field(
        default=1e-8, gt=0, description="AdamW adds it to the root of the mean square."
    )
    clip_norm: float = Field(
        default=0.0,
        ge=0,
        description="Longest gradient, as one vector of all weights; longer ones are scaled down "
        "to it. 0: as long as they come.",
    )
    balance_loss: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the balance term of the training loss (Switch Transformers): each "
        "device's gate is drawn to use all of its experts; 0 leaves it out.",
    )
    trainer: Literal["native", "executorch"] = Field(
        default="native",
        description="What the devices that `flexmoe run` starts train with: native, our runtime; "
        "executorch, the stock runtime, which needs PyTorch. Devices elsewhere choose their own.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=MAX_THREADS,
        description="Threads of each device that `flexmoe run` starts; 0: as many whole cores as "
        "its cgroup's quota gives, 1 without a quota.",
    )

    def rates(self, number: int) -> Rates:
        """How the weights change in round `number`, from 1."""
        return Rates(
            learning_rate=self.learning_rate * self.learning_rate_decay ** (number - 1),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            clip_norm=self.clip_norm,
        )
