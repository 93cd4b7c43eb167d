"""The aggregator against a plain loop over all clients at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.aggregation import Aggregator, ClientUpdate
from edge_runtime.parts import GATE, ModelParts, merge
from edge_runtime.protocol.blob import kind_of_expert
from tests.broker_server.sample_model import changes, random_model

EXPERTS = 4


def make_update(
    seed: int, model: ModelParts, samples: int, used: dict[int, int], local_gate: bool = False
) -> ClientUpdate:
    experts = sorted(used)
    change = changes(seed, model, experts)
    return ClientUpdate(
        samples=samples,
        experts=experts,
        usage=[used[e] for e in experts],
        backbone=change["backbone"],
        gate=None if local_gate else change["gate"][GATE],
        changes=[change[kind_of_expert(e)] for e in experts],
    )


def aggregate(model: ModelParts, updates: Sequence[ClientUpdate]) -> ModelParts:
    aggregator = Aggregator(model)
    for update in updates:
        aggregator.add(update)
    return aggregator.result()


def plain_mean(base: np.ndarray, weighted: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """base + sum(w * change) / sum(w), one number at a time."""
    result = base.copy()
    total = sum(weight for weight, _ in weighted)
    if total:
        for i in np.ndindex(*base.shape):
            mean = sum(weight * float(change[i]) for weight, change in weighted) / total
            result[i] = np.float32(float(base[i]) + mean)
    return result


def plain(model: ModelParts, updates: Sequence[ClientUpdate]) -> ModelParts:
    """The formulas of the module's docstring, read aloud."""
    backbone = {
        name: plain_mean(base, [(u.samples, u.backbone[name]) for u in updates])
        for name, base in model.backbone.items()
    }
    gate, experts = [], []
    for e in range(len(model.experts)):
        holders = [(u, list(u.experts).index(e)) for u in updates if e in u.experts]
        rows = [(u.usage[i], u.gate[i]) for u, i in holders if u.gate is not None]
        gate.append(plain_mean(model.gate[e], rows))
        experts.append(
            {
                name: plain_mean(base, [(u.usage[i], u.changes[i][name]) for u, i in holders])
                for name, base in model.experts[e].items()
            }
        )
    return ModelParts(backbone, np.stack(gate), tuple(experts))


def assert_close(left: ModelParts, right: ModelParts) -> None:
    """Equal but for the rounding of float64 sums, seen through float32."""
    want = merge(right)
    got = merge(left)
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, want[name], rtol=3e-7, atol=1e-12, err_msg=name)


USED = st.dictionaries(
    st.integers(0, EXPERTS - 1), st.integers(0, 50) | st.just(0), min_size=1, max_size=EXPERTS
)
CLIENTS = st.lists(st.tuples(st.integers(1, 10**9), USED, st.booleans()), max_size=5)


@settings(max_examples=30)
@given(st.integers(0, 99), CLIENTS)
def test_it_is_the_weighted_mean_of_the_changes(
    seed: int, clients: list[tuple[int, dict[int, int], bool]]
) -> None:
    model = random_model(seed)
    updates = [
        make_update(seed + i, model, n, used, local) for i, (n, used, local) in enumerate(clients)
    ]
    assert_close(aggregate(model, updates), plain(model, updates))


@settings(max_examples=30)
@given(st.integers(0, 99), CLIENTS, st.randoms(use_true_random=False))
def test_the_order_changes_no_more_than_rounding(
    seed: int, clients: list[tuple[int, dict[int, int], bool]], random: np.random.Generator
) -> None:
    model = random_model(seed)
    updates = [make_update(seed + i, model, n, used) for i, (n, used, _) in enumerate(clients)]
    mixed = list(updates)
    random.shuffle(mixed)
    assert_close(aggregate(model, mixed), aggregate(model, updates))


def test_the_same_order_gives_the_same_bits() -> None:
    model = random_model(0)
    updates = [make_update(i, model, 3 + i, {0: i, 2: 5}) for i in range(4)]
    first, second = merge(aggregate(model, updates)), merge(aggregate(model, updates))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_an_expert_that_nobody_used_stays_as_it_is() -> None:
    model = random_model(1)
    after = aggregate(
        model, [make_update(1, model, 9, {0: 9, 2: 0}), make_update(2, model, 4, {0: 4})]
    )
    for e in (1, 2, 3):
        assert after.experts[e] is model.experts[e]
        assert after.gate[e].tobytes() == model.gate[e].tobytes()
    assert not np.array_equal(after.experts[0]["0.weight"], model.experts[0]["0.weight"])
    assert not np.array_equal(after.gate[0], model.gate[0])


def test_a_local_gate_leaves_the_servers_gate_alone() -> None:
    model = random_model(2)
    after = aggregate(model, [make_update(3, model, 9, {0: 4, 1: 5}, local_gate=True)])
    assert after.gate.tobytes() == model.gate.tobytes()
    assert not np.array_equal(after.experts[1]["0.bias"], model.experts[1]["0.bias"])


def test_weights_of_zero_change_nothing() -> None:
    model = random_model(3)
    after = aggregate(model, [make_update(4, model, 0, {0: 0, 3: 0})])
    assert after.backbone is model.backbone
    assert all(new is old for new, old in zip(after.experts, model.experts, strict=True))


def test_no_updates_change_nothing() -> None:
    model = random_model(4)
    after = aggregate(model, [])
    assert after.backbone is model.backbone and np.array_equal(after.gate, model.gate)


def test_the_model_and_the_updates_are_not_written_to() -> None:
    model = random_model(5)
    update = make_update(6, model, 5, {0: 2, 1: 3})
    before = [v.copy() for v in merge(model).values()] + [update.backbone["0.bias"].copy()]
    aggregate(model, [update, update])
    now = [*merge(model).values(), update.backbone["0.bias"]]
    assert all(np.array_equal(a, b) for a, b in zip(before, now, strict=True))


def test_small_changes_survive_beside_large_weights() -> None:
    """Sums in float32 would lose the second change: 2**24 + 1 is none of its numbers."""
    model = ModelParts({"w": np.zeros(1, np.float32)}, np.zeros((1, 1), np.float32), ({},))

    def change(value: float, samples: int) -> ClientUpdate:
        return ClientUpdate(samples, [], [], {"w": np.full(1, value, np.float32)}, None, [])

    after = aggregate(model, [change(1.0, 2**24), change(1.0, 1), change(-1.0, 2**24)])
    assert after.backbone["w"][0] == np.float32(1 / (2**25 + 1))
