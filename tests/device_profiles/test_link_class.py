"""What bytes cost on links, against figures done by hand; classes of links as files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.catalogue.figure import Figure
from device_profiles.catalogue.link_class import LINK_KEYS, Cost, LinkClass, cost
from device_profiles.catalogue.profile_file import read_link, to_toml
from device_profiles.catalogue.profiles import LINKS, PUBLISHED_LINKS
from edge_runtime.errors import ConfigError

SIZES = st.integers(0, 2**40)
LOSSY = LinkClass(
    "lossy",
    "Lossy",
    up_rate=Figure(1e6, "a"),
    down_rate=Figure(2e6, "b", True),
    up_power=Figure(0, "c"),
    down_power=Figure(0.25, "d"),
    latency_s=Figure(0, "e"),
    loss=Figure(0.5, "f"),
    duty_cycle=Figure(1, "g"),
)


@pytest.mark.parametrize(
    ("name", "seconds", "joules"),
    [
        # 20 kB up and 40 kB down, at the rates and powers of each class.
        ("ethernet", 480e3 / 94.4e6, 0.3 * 480e3 / 94.4e6),
        ("wifi", 480e3 / 44.5e6, 0.83 * 160e3 / 44.5e6 + 0.28 * 320e3 / 44.5e6),
        ("wifi-poor", 480e3 / 4.4e6, 0.83 * 160e3 / 4.4e6 + 0.28 * 320e3 / 4.4e6),
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
        assert one.joules == pytest.approx(up * link.up_joules_per_byte)
        assert other.joules == pytest.approx(down * link.down_joules_per_byte)
        assert cost(link, 0, 0) == Cost(0, 0)


def test_a_slower_class_takes_longer() -> None:
    times = [cost(link, 1000, 1000).seconds for link in PUBLISHED_LINKS.values()]
    assert times == sorted(times)


def test_every_constant_says_where_it_is_from() -> None:
    assert [link.name for link in LINKS.values()] == list(LINKS)
    for link in LINKS.values():
        labels = {"up, bit/s", "down, bit/s", "sending, W", "receiving, W", "latency, s", "loss"}
        assert labels <= set(link.figures)
        for figure in link.figures.values():
            assert len(figure.source) > 5
    assert LINKS["lora"].figures["duty cycle"].value == 0.01
    assert LINKS["wifi"].duty_cycle is None


def test_a_class_has_a_key_for_each_figure() -> None:
    kinds = {field.name: str(field.type) for field in fields(LinkClass)}
    assert [name for name, kind in kinds.items() if "Figure" in kind] == [k.key for k in LINK_KEYS]
    optional = [name for name, kind in kinds.items() if "None" in kind]
    assert optional == [key.key for key in LINK_KEYS if key.optional] == ["duty_cycle"]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "lossy.toml"
    file.write_text(to_toml(LOSSY))
    assert read_link(file) == LOSSY


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value = 0.5", "value = 1", "loss.value: expected a share from 0 to below 1, got 1"),
        ("value = 0.5", "value = -0.1", "loss.value: expected a share from 0 to below 1, got -0.1"),
        ("value = 1\n", "value = 0\n", "duty_cycle.value: expected a share above 0, at most 1, go"),
        ("value = 1\n", "value = 2\n", "duty_cycle.value: expected a share above 0, at most 1, go"),
        ("value = 1000000", "value = 0", "up_rate.value: expected a number above 0, got 0"),
        ("value = 0.25", "value = -1", "down_power.value: expected a number from 0, got -1"),
        ("[latency_s]", "[latency_ms]", "unknown key latency_ms; did you mean latency_s?"),
        ("title", "link = 'wifi'\ntitle", "unknown key link; known are title, up_rate, "),
        ('"Lossy"', "1979-05-27", "title: expected a text of one line, not empty, got 1979-05-27"),
    ],
)
def test_a_defect_is_named_with_what_was_expected_and_what_came(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    file = tmp_path / "lossy.toml"
    assert old in to_toml(LOSSY)
    file.write_text(to_toml(LOSSY).replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_link(file)
    assert str(caught.value).startswith(f"{file}: {said}")
