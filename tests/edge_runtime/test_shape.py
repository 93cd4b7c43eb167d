"""A link's shape as text, its ranges, and its time scale."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.transport.shape import Shape

rates = st.floats(0, 1e12)
shapes = st.builds(
    Shape,
    up_bps=rates,
    down_bps=rates,
    delay_s=st.floats(0, 1e3),
    loss=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**40),
)


@given(shapes)
def test_text_and_back(shape: Shape) -> None:
    assert Shape.parse(str(shape)) == shape


def test_the_text_is_that_of_the_command_line() -> None:
    text = "up=375000,down=300000,delay=0.05,loss=0.01,seed=3"
    shape = Shape(375e3, 300e3, 0.05, 0.01, 3)
    assert Shape.parse(text) == shape
    assert str(shape) == text
    assert str(Shape(0, 2.5)) == "up=0,down=2.5"
    assert Shape.parse("down=26e3, up=62e3") == Shape(62e3, 26e3)
    assert Shape.parse("") == Shape(0, 0)


@given(shapes, st.floats(0.1, 100))
def test_in_scaled_time_as_many_bytes_take_as_long_of_life(shape: Shape, scale: float) -> None:
    scaled = shape.scaled(scale)
    assert scaled.up_bps == pytest.approx(shape.up_bps * scale)
    assert scaled.down_bps == pytest.approx(shape.down_bps * scale)
    assert scaled.delay_s * scale == pytest.approx(shape.delay_s)
    assert (scaled.loss, scaled.seed) == (shape.loss, shape.seed)


@pytest.mark.parametrize(
    "text",
    ["up", "up=", "up=x", "up=1,up=2", "speed=1", "up=1,,down=2", "seed=1.5", "delay=1 s", "=1"],
)
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(ConfigError, match="shape of a link"):
        Shape.parse(text)


@pytest.mark.parametrize("part", ["up=-1", "down=nan", "delay=-0.1", "loss=1", "loss=-1", "up=inf"])
def test_what_is_out_of_range(part: str) -> None:
    key = part.partition("=")[0]
    with pytest.raises(ConfigError, match=f"expected {key}"):
        Shape.parse(part)
