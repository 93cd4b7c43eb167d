"""Samples as they were recorded, read as float32.

Sensors and cameras deliver small integers. Kept as such they take a quarter of the memory (and of
the file); a batch is scaled when it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Samples:
    """`values` [n, *shape], float32, or uint8 that stand for ``values * scale + offset``.

    `scale` and `offset` are float32 and broadcast to `shape`. Indexing draws samples: a fresh
    float32 array [len(indices), *shape].
    """

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    offset: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, *shape]."""
        return self.values.shape

    def part(self, indices: Any) -> Samples:
        """These samples, still as recorded."""
        return Samples(self.values[indices], self.scale, self.offset)

    def __getitem__(self, indices: Any) -> NDArray[np.float32]:
        drawn: NDArray[np.float32] = self.values[indices].astype(np.float32)
        if self.scale is not None:
            drawn *= self.scale
        if self.offset is not None:
            drawn += self.offset
        return drawn

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float32, copy=False)
