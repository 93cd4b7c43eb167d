"""Samples as they were recorded, drawn as float32.

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

    `scale` and `offset` are float32 and broadcast to `shape`. Indexing draws samples: float32
    [len(indices), *shape].
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

    def __getitem__(self, indices: Any) -> NDArray[np.float32]:
        drawn: NDArray[np.float32] = self.values[indices].astype(np.float32, copy=False)
        if self.scale is not None and self.offset is not None:
            drawn *= self.scale  # in place: the values are uint8, so `drawn` is a copy
            drawn += self.offset
        return drawn
