"""What bytes cost on links, against figures done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.link_class import LINKS, Cost, cost

SIZES = st.integers(0, 2**40)


@pytest.mark.parametrize(
    ("name", "seconds", "joules"),
    [
        # 20 kB up and 40 kB down, at the rates and powers of each class.
        ("ethernet", 480e3 / 94.4e6, 0.3 * 480e3 / 94.4e6),
        ("wifi", 480e3 / 44.5e6, 0.83 * 160e3 / 44.5e6 + 0.28 * 320e3 / 44.5e6),
        ("lte-m", 160e3 / 375e3 + 320e3 / 300e3, 0.89 * 160 / 375 + 0.28 * 320 / 300),
        ("nb-iot", 160 / 62 + 320 / 26, 0.5 * 160 / 62 + 0.15 * 320 / 26),
        # The duty cycle costs time, not energy.
        ("lora", 100 * 480e3 / 5470, 0.137 * 160e3 / 5470 + 0.042 * 320e3 / 5470),
    ],
)
def test_a_round_on_each_class(name: str, seconds: float, joules: float) -> None:
    assert cost(LINKS[name], 20_000, 40_000) == Cost(pytest.approx(seconds), pytest.approx(joules))


@given(SIZES, SIZES)
def test_costs_add_up_and_nothing_costs_nothing(up: int, down: int) -> None:
    for link in LINKS.values():
        both, one, other = cost(link, up, down), cost(link, up, 0), cost(link, 0, down)
        assert both.seconds == pytest.approx(one.seconds + other.seconds)
        assert both.joules == pytest.approx(one.joules + other.joules)
        assert cost(link, 0, 0) == Cost(0, 0)


def test_a_slower_class_takes_longer() -> None:
    times = [cost(link, 1000, 1000).seconds for link in LINKS.values()]
    assert times == sorted(times)


def test_every_constant_says_where_it_is_from() -> None:
    assert [link.name for link in LINKS.values()] == list(LINKS)
    for link in LINKS.values():
        assert {"up, bit/s", "down, bit/s", "sending, W", "receiving, W"} <= set(link.figures)
        for name, figure in link.figures.items():
            assert figure.value > 0 and len(figure.source) > 5, name
    assert LINKS["lora"].figures["duty cycle"].value == 0.01
    assert LINKS["wifi"].duty_cycle is None
