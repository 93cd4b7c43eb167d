"""The sections of an experiment that say who trains which experts, and who owns the gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from broker_server.field_types import MOST, FilePath, Section


class Fitness(Section):
    """How well an expert fits a device."""

    mode: Literal["loss", "accuracy"] = Field(
        default="loss",
        description="Fitness s of an expert on a device: exp(-alpha * loss), or its accuracy.",
    )
    alpha: float = Field(default=1.0, gt=0, description="Sharpness of loss-driven fitness.")
    beta: float = Field(
        default=0.5, ge=0, le=1, description="Weight of the newest s: Q = (1 - beta) Q + beta s."
    )
    explore: float = Field(
        default=1.0,
        ge=0,
        description="Bonus for pairs that were tried seldom: explore * sqrt(ln(1 + t) / (1 + "
        "trials)), added to Q for the assignment. 0 is the paper's rule, under which pairs that "
        "scored badly in the first rounds are never tried again.",
    )
    q0: float = Field(default=1.0, ge=0, description="Q of a pair that was never trained.")


class Assignment(Section):
    """Who trains which experts."""

    policy: Literal["flex_moe", "desirability", "greedy", "random", "rolling", "full", "fixed"] = (
        Field(
            default="flex_moe",
            description="flex_moe: most quality under load bounds; desirability: each device's "
            "top k by quality less usage; greedy: its top k by quality; random: any k; rolling: "
            "the next k in turn; full: every expert to every device; fixed: as in a file.",
        )
    )
    solver: Literal["auto", "exact", "prices"] = Field(
        default="auto",
        description="Of flex_moe. exact: an integer program; prices: near optimal at any size, "
        "certified; auto: prices, then exact where the fleet is small.",
    )
    delta: float = Field(
        default=0.02,
        ge=0,
        description="Tolerance of the load bounds around the fair share, as a fraction of it; half "
        "a mean device's samples where that is more.",
    )
    balance: Literal["assigned", "routed", "both"] = Field(
        default="assigned",
        description="Which load is to be even: assigned, the samples of an expert's devices (the "
        "paper's); routed, the samples that gates send to it; both: the mean of the two.",
    )
    penalty: float = Field(
        default=1.0, ge=0, description="Of desirability: weight of the usage of an expert."
    )
    file: FilePath = Field(
        default="",
        description="Of fixed: a .npy of 0 and 1 [devices, experts], as `flexmoe assign` writes "
        "it. Rows are the devices by name, so all must be there when the run begins. A "
        "relative path starts at the experiment file's folder.",
    )


class Participation(Section):
    """How many of the devices that are there take part in a round, in fair turns."""

    fraction: float = Field(
        default=1.0, gt=0, le=1, description="Share of the devices that are there, rounded up."
    )
    count: int = Field(
        default=0, ge=0, le=MOST, description="How many devices, at most; 0: as fraction says."
    )


class Gate(Section):
    """Who owns the gate."""

    mode: Literal["shared", "local"] = Field(
        default="shared",
        description="shared: aggregated like the experts; local: never leaves its device.",
    )
