"""What the codecs are tried on, and what they make of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_runtime.codec import Codec
from edge_runtime.errors import WireError
from edge_runtime.tensor_blob import Shapes, Tensors

LARGEST = float(np.finfo(np.float32).max)

# Zeros, ordinary changes, denormal and huge numbers.
_values = st.one_of(
    st.just(0.0),
    st.floats(-1, 1, width=32),
    st.floats(-(2.0**-120), 2.0**-120, width=32),
    st.floats(-LARGEST, LARGEST, width=32),
    st.sampled_from([LARGEST, -LARGEST, 2.0**-149, -(2.0**-149), -0.0]),
)
_arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    elements=_values,
    fill=st.just(np.float32(0)),
)
tensors_strategy = st.dictionaries(st.text(min_size=1, max_size=4), _arrays, max_size=5)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def shapes_of(tensors: Mapping[str, NDArray[Any]]) -> Shapes:
    return {name: value.shape for name, value in tensors.items()}


def laplace(seed: int, *shapes: tuple[int, ...]) -> Tensors:
    """Tensors like a change of weights: most values small, a few large."""
    source = rng(seed)
    return {
        f"{i}.weight": (0.01 * source.laplace(size=shape)).astype(np.float32)
        for i, shape in enumerate(shapes)
    }


def flat(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """All values, tensors by name."""
    arrays = [tensors[name].reshape(-1) for name in sorted(tensors)]
    return np.concatenate([*arrays, np.zeros(0)]).astype(np.float64)


def refused(call: Callable[[], object]) -> tuple[str, int]:
    """The reason of the `WireError` that `call` must raise, and the peak of its memory in bytes."""
    tracemalloc.start()
    try:
        call()
    except WireError as error:
        return error.reason, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    raise AssertionError("nothing was refused")


def there_and_back(codec: Codec, tensors: Tensors, seed: int = 0) -> Tensors:
    """What a codec makes of tensors; checked for names, shapes and dtype."""
    again = codec.decode(codec.encode(tensors, rng(seed)), shapes_of(tensors))
    assert shapes_of(again) == shapes_of(tensors)
    assert all(value.dtype == np.float32 for value in again.values())
    return again
