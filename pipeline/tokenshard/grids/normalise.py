"""Tiles of a field as a tokenizer sees them: without their mean, divided by a gain that is a power of two.

Mean and gain are found by sums of whole numbers, which are the same on every machine and in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.spec.grids import LayerEntry

STEPS = 1 << 20
"""Values are rounded to this many steps of a tile's range before they are added up."""
FINEST = 2.0**-7
"""The least gain of real numbers, in their unit; that of whole numbers is two steps of them."""


@dataclass(frozen=True)
class Normal:
    """Mean and gain of a tile: value = mean + 2^log2gain * normalised value."""

    mean: float
    """a float32"""
    log2gain: int | None
    """None: the tile is flat, or has no value at all"""


def physical(stored: NDArray[Any], layer: LayerEntry) -> NDArray[np.float64]:
    """What stored values stand for, in the unit of the grid."""
    values = stored.astype(np.float64)
    return values if (layer.scale, layer.offset) == (1.0, 0.0) else values * layer.scale + layer.offset


def normal_of(values: NDArray[np.float64], valid: NDArray[np.bool_], layer: LayerEntry) -> Normal:
    """Mean and gain of the valid values of a tile. The gain is the power of two next to their standard deviation."""
    found = values[valid]
    if not len(found):
        return Normal(0.0, None)
    low, high = float(found.min()), float(found.max())
    if low == high:
        return Normal(float(np.float32(low)), None)
    step = (high - low) / STEPS
    whole = np.rint((found - low) / step).astype(np.int64)
    count, total, squares = len(whole), int(whole.sum()), int((whole * whole).sum())
    mean = low + step * (total / count)
    variance = step * step * ((squares * count - total * total) / (count * count))
    floor = least_gain(layer)
    # frexp is exact: the exponent of the variance, halved
    log2gain = int(np.floor((np.frexp(max(variance, floor * floor))[1]) / 2))
    flat = variance < (floor / 64) ** 2
    return Normal(float(np.float32(mean)), None if flat else log2gain)


def least_gain(layer: LayerEntry) -> float:
    """The least gain that a tile of a layer may have, in the unit of the grid."""
    return 2 * abs(layer.scale) if np.dtype(layer.dtype).kind in "iu" else FINEST


def normalised(values: NDArray[np.float64], valid: NDArray[np.bool_], normal: Normal) -> NDArray[np.float64]:
    """The field of a tile as the tokenizer takes it: NaN where there is no value."""
    gain = 1.0 if normal.log2gain is None else np.ldexp(1.0, normal.log2gain)
    field = (values - normal.mean) / gain if normal.log2gain is not None else np.zeros(values.shape)
    return np.where(valid, field, np.nan)


def restored(field: NDArray[Any], normal: Normal) -> NDArray[np.float64]:
    """Values of a decoded field, in the unit of the grid."""
    gain = 0.0 if normal.log2gain is None else float(np.ldexp(1.0, normal.log2gain))
    return normal.mean + gain * field.astype(np.float64)
