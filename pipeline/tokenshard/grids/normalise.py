"""Values of a tile as a tokenizer sees them: in its steps, from a whole number of steps next to the mean of the tile.

What a cell rounds to does not depend on the tile it lies in, so tiles agree about the cells around their borders. Means
are found by sums of whole numbers, which are the same on every machine and in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.spec.grids import LayerEntry
from tokenshard.tokenizers.grid_split import LARGEST_CELL
from tokenshard.tokenizers.lapped import UNIT

_PARTS = 1 << 20
"""Values are rounded to this many parts of a tile's range before they are added up."""


@dataclass(frozen=True)
class Normal:
    """Where a tile lies: value = mean + step * field."""

    mean: float
    """a whole number of steps"""
    step: float
    log2gain: int | None
    """the power of two next to the standard deviation; None: the tile is flat, or has no value at all"""

    @property
    def steps(self) -> float:
        """The mean in steps."""
        return float(np.rint(self.mean / self.step))


def physical(stored: NDArray[Any], layer: LayerEntry) -> NDArray[np.float64]:
    """What stored values stand for, in the unit of the grid."""
    values = stored.astype(np.float64)
    return values if (layer.scale, layer.offset) == (1.0, 0.0) else values * layer.scale + layer.offset


def normal_of(values: NDArray[np.float64], valid: NDArray[np.bool_], step: float) -> Normal:
    """Where the valid values of a tile lie."""
    found = values[valid]
    if not len(found):
        return Normal(0.0, step, None)
    low, high = float(found.min()), float(found.max())
    if low == high:
        return Normal(_on_steps(low, step), step, None)
    part = (high - low) / _PARTS
    whole = np.rint((found - low) / part).astype(np.int64)
    count, total, squares = len(whole), int(whole.sum()), int((whole * whole).sum())
    variance = part * part * ((squares * count - total * total) / (count * count))
    # frexp is exact: the exponent of the variance, halved
    return Normal(_on_steps(low + part * (total / count), step), step, int(np.floor(np.frexp(variance)[1] / 2)))


def _on_steps(value: float, step: float) -> float:
    return float(np.clip(np.rint(value / step), -LARGEST_CELL, LARGEST_CELL)) * step


def normalised(values: NDArray[np.float64], valid: NDArray[np.bool_], normal: Normal) -> NDArray[np.float64]:
    """The field of a tile as the tokenizer takes it, in whole 1 / UNIT steps: NaN where there is no value."""
    limit = LARGEST_CELL / UNIT
    steps = np.rint(np.clip(np.where(valid, values, 0) / normal.step, -limit, limit) * UNIT) / UNIT
    return np.where(valid, steps - normal.steps, np.nan)


def restored(field: NDArray[Any], normal: Normal) -> NDArray[np.float64]:
    """Values of a decoded field, in the unit of the grid."""
    return (field.astype(np.float64) + normal.steps) * normal.step
