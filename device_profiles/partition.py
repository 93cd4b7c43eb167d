"""Who gets which samples: splits of a data set over devices, and of a device's part in two.

| scheme         | devices get                                   | after                    |
|----------------|-----------------------------------------------|--------------------------|
| `iid`          | random samples, equally many                  | McMahan et al. 2017 [1]  |
| `dirichlet(a)` | of each class a share drawn from Dirichlet(a) | Hsu et al. 2019 [2, 3]   |
| `classes(n)`   | samples of at most n classes                  | McMahan et al. 2017 [1]  |
| `natural`      | the people (groups) of the data, in turn      |                          |

[1] arXiv 1602.05629. [2] arXiv 1909.06335, which draws the classes of each device; here each class
is shared out over devices, as in [3] Yurochkin et al. 2019, arXiv 1905.12022.

What is dealt out is a *unit*: a sample or, where samples share raw measurements, a whole chain.
All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import heapq
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, DataError

Indices = NDArray[np.int64]
Kind = Literal["iid", "dirichlet", "classes", "natural"]

LARGEST_ALPHA = 1e6  # shares are equal by then, and sums of far larger draws overflow
ALLOWED = "iid, natural, dirichlet(alpha) with 0 < alpha <= 1e6, classes(n) with a whole n >= 1"


@dataclass(frozen=True)
class Scheme:
    """A split: `value` is alpha of `dirichlet`, n of `classes`, and unused (0) otherwise."""

    kind: Kind
    value: float = 0.0


def parse_scheme(text: str) -> Scheme:
    """Read `iid`, `natural`, `dirichlet(0.5)` or `classes(4)`; else `ConfigError`."""
    form = re.fullmatch(r"(iid|natural)|(dirichlet|classes)\(([^()]*)\)", text.strip())
    if form and form[1]:
        return Scheme(cast(Kind, form[1]))
    try:
        value = float(form[3]) if form else math.nan
    except ValueError:
        value = math.nan
    whole = value.is_integer() and value >= 1
    if form and (whole if form[2] == "classes" else 0 < value <= LARGEST_ALPHA):
        return Scheme(cast(Kind, form[2]), value)
    raise ConfigError(f"split: expected one of {ALLOWED}; got {text!r}")


@dataclass(frozen=True)
class _Units:
    """Label and size in samples of each unit [u], and the unit of each sample [n]."""

    label: Indices
    size: Indices
    of_sample: Indices


def partition(
    labels: NDArray[Any],
    devices: int,
    scheme: str,
    rng: np.random.Generator,
    groups: NDArray[Any] | None = None,
    chains: NDArray[Any] | None = None,
    minimum: int = 10,
) -> list[Indices]:
    """Split samples with these `labels` [n] over `devices`: ascending index arrays, none empty.

    They are disjoint and cover all samples. `groups` [n] are the people of `natural`. `chains` [n]
    are kept whole; a chain counts as its most frequent label. `minimum` is how many samples every
    device of a `dirichlet` split gets at least.

    Raises `ConfigError` for a scheme that cannot be used here, `DataError` for too little data.
    """
    plan = parse_scheme(scheme)
    labels = np.asarray(labels)
    if devices < 1:
        raise ConfigError(f"devices: expected at least 1, got {devices}")
    for name, ids in (("groups", groups), ("chains", chains)):
        if ids is not None and ids.shape != labels.shape:
            raise DataError(f"{name}: expected one a sample ({len(labels)}), got {ids.shape}")

    if plan.kind == "natural":
        return _collect(_natural(groups, devices), devices)
    units = _units(labels, chains)
    if len(units.label) < devices:
        raise DataError(
            f"{scheme}: expected at least one sample or chain a device, "
            f"got {len(units.label)} for {devices} devices; use fewer devices (data.devices)"
        )
    if plan.kind == "iid":
        owner = _iid(units, devices, rng)
    elif plan.kind == "dirichlet":
        owner = _dirichlet(units, devices, plan.value, rng)
        _top_up(owner, units, devices, max(minimum, 1))
    else:
        owner = _classes(units, devices, int(plan.value), rng)
    return _collect(owner[units.of_sample], devices)


def holdout(
    indices: NDArray[Any],
    fraction: float,
    rng: np.random.Generator,
    chains: NDArray[Any] | None = None,
) -> tuple[Indices, Indices]:
    """Split a device's `indices` into (train, test), ascending, with about `fraction` in `test`.

    `chains` [n] are those of the whole data set; each stays on one side. `train` is never empty,
    `test` only if `fraction` is 0 or there is but one sample or chain.

    Raises `ConfigError` unless 0 <= fraction < 1, `DataError` for no indices.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"test fraction: expected 0 <= fraction < 1, got {fraction}")
    indices = np.sort(np.asarray(indices, dtype=np.int64))
    if not len(indices):
        raise DataError("held-out part: expected a device with samples, got none")
    ids = indices if chains is None else chains[indices]
    unit, size = np.unique(ids, return_inverse=True, return_counts=True)[1:]
    if fraction == 0 or len(size) == 1:
        return indices, indices[:0]
    order = rng.permutation(len(size))
    # The first few units in random order: as many as come closest to the fraction, but one at
    # least, and never all of them.
    sizes = np.cumsum(size[order])[:-1]
    count = 1 + int(np.argmin(np.abs(sizes - fraction * len(indices))))
    test = np.isin(unit, order[:count])
    return indices[~test], indices[test]


def _units(labels: Indices, chains: NDArray[Any] | None) -> _Units:
    """Samples as units, or chains with their most frequent label (of equals, the smallest)."""
    values, label = np.unique(labels, return_inverse=True)
    if chains is None:
        return _Units(label, np.ones_like(label), np.arange(len(label)))
    unit, size = np.unique(chains, return_inverse=True, return_counts=True)[1:]
    votes = np.bincount(unit * len(values) + label, minlength=len(size) * len(values))
    majority = votes.reshape(len(size), len(values)).argmax(axis=1)
    # Numbered anew, without the labels that are nowhere the most frequent.
    return _Units(np.unique(majority, return_inverse=True)[1], size, unit)


def _collect(owner: Indices, devices: int) -> list[Indices]:
    """The samples of each device, from the device [n] of each sample."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=devices))[:-1])


def _natural(groups: NDArray[Any] | None, devices: int) -> Indices:
    """The device of each sample: device i gets the people i, i + devices, ... in their order."""
    if groups is None:
        raise ConfigError("natural: expected a data set that says who each sample is from (har)")
    people, person = np.unique(groups, return_inverse=True)
    if devices > len(people):
        raise DataError(
            f"natural: expected at most {len(people)} devices, one a person, got {devices}"
        )
    return person % devices


def _iid(units: _Units, devices: int, rng: np.random.Generator) -> Indices:
    """The device of each unit [u]: in random order, each to the device with the least samples."""
    owner = np.empty_like(units.label)
    _deal(rng.permutation(len(owner)), units, list(range(devices)), owner)
    return owner


def _deal(order: Indices, units: _Units, devices: list[int], owner: Indices) -> None:
    """Give the units in `order` to `devices`, always to the one that got the least so far."""
    heap = [(0, rank, device) for rank, device in enumerate(devices)]
    for unit in order:
        got, rank, device = heap[0]
        owner[unit] = device
        heapq.heapreplace(heap, (got + int(units.size[unit]), rank, device))


def _dirichlet(units: _Units, devices: int, alpha: float, rng: np.random.Generator) -> Indices:
    """The device of each unit [u]: every class is cut by its own draw of shares."""
    owner = np.empty_like(units.label)
    for label in np.unique(units.label):
        members = rng.permutation(np.flatnonzero(units.label == label))
        cuts = np.cumsum(rng.dirichlet(np.full(devices, alpha)))[:-1]
        # A unit belongs to the device in whose share its middle lies. The shares lie in random
        # order, or else rounding would favour the same devices in every class.
        size = units.size[members]
        middle = (np.cumsum(size) - size / 2) / size.sum()
        owner[members] = rng.permutation(devices)[np.searchsorted(cuts, middle)]
    return owner


def _top_up(owner: Indices, units: _Units, devices: int, minimum: int) -> None:
    """Move units from the richest devices to the poorest until each has `minimum` samples.

    A draw is not repeated until it fits: that may take for ever when devices are many. The giver
    parts with the class that it has most of, and keeps `minimum` itself, so every move helps.
    """
    held = np.bincount(owner, weights=units.size, minlength=devices).astype(np.int64)
    if held.sum() < minimum * devices:
        raise DataError(
            f"dirichlet: expected at least {minimum} samples for each of {devices} devices, "
            f"got {held.sum()} in all; use fewer devices (data.devices)"
        )
    while held.min() < minimum:
        poorest = int(held.argmin())
        givers = np.argsort(-held, kind="stable")
        offers = (_spare(giver, owner, units, int(held[giver]) - minimum) for giver in givers)
        unit = next((offer for offer in offers if offer is not None), None)
        if unit is None:
            raise DataError(
                f"dirichlet: cannot give each of {devices} devices {minimum} samples without "
                "splitting a chain; use fewer devices (data.devices)"
            )
        held[owner[unit]] -= units.size[unit]
        held[poorest] += units.size[unit]
        owner[unit] = poorest


def _spare(giver: int, owner: Indices, units: _Units, most: int) -> int | None:
    """The first unit of at most `most` samples that `giver` has, of the class it has most of."""
    own = np.flatnonzero(owner == giver)
    of_class = np.bincount(units.label[own], weights=units.size[own])
    own = own[units.size[own] <= most]
    return int(own[of_class[units.label[own]].argmax()]) if len(own) else None


def _classes(units: _Units, devices: int, most: int, rng: np.random.Generator) -> Indices:
    """The device of each unit [u]: devices hold `most` classes; holders share a class evenly.

    Classes are chosen in `most` passes over the devices, each time one of those that the fewest
    devices hold. So every class is held by someone, all by about equally many, and none by more
    devices than it has units: nobody goes empty.
    """
    available = np.bincount(units.label)
    if devices * most < len(available):
        raise ConfigError(
            f"classes({most}): {devices} devices hold {devices * most} classes at most, "
            f"but the data has {len(available)}; use more devices or classes"
        )
    holds = np.zeros((devices, len(available)), dtype=bool)
    holders = np.zeros_like(available)
    for _ in range(min(most, len(available))):
        for device in range(devices):
            choices = np.flatnonzero(~holds[device] & (holders < available))
            if len(choices):
                chosen = rng.choice(choices[holders[choices] == holders[choices].min()])
                holds[device, chosen] = True
                holders[chosen] += 1
    owner = np.empty_like(units.label)
    for label in range(len(available)):
        members = rng.permutation(np.flatnonzero(units.label == label))
        _deal(members, units, np.flatnonzero(holds[:, label]).tolist(), owner)
    return owner
