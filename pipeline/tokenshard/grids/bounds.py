"""What a bound of a job means for a grid: in its own unit, and in the stored units of its file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.grids.bounded import Bound
from tokenshard.grids.normalise import physical
from tokenshard.spec.grids import GridEntry


def stored_bound(bound: Bound, entry: GridEntry, stored: NDArray[Any]) -> Bound:
    """The bound in stored units for cells with these values.

    A share of the vertical uncertainty becomes a plain bound, that of the shoalest cell, where a file stores anything
    but heights in metres. Raises InputError where a grid is no length at all.
    """
    unit = abs(entry.elevation.scale) * (entry.metres or 1.0)
    if bound.kind == "abs":
        return Bound("abs", bound.value / unit)
    if bound.kind != "tvu" or stores_heights(entry):
        return bound
    return (
        Bound("abs", float(allowed(bound, entry, stored).min()) / abs(entry.elevation.scale)) if stored.size else bound
    )


def allowed(bound: Bound, entry: GridEntry, stored: NDArray[Any]) -> NDArray[np.float64]:
    """The largest error of cells with these stored values, in the unit of the grid. Raises InputError as above."""
    if bound.kind == "lossless":
        return np.zeros(stored.shape)
    metres = entry.metres or 1.0
    if bound.kind == "abs":
        return np.full(stored.shape, bound.value / metres)
    if entry.metres is None:
        raise InputError(
            f"a bound of {bound} is for heights; {entry.elevation.name!r} has the unit {entry.units!r}: use abs:E"
        )
    heights = physical(stored, entry.elevation) * metres
    return np.asarray(bound.allowed(heights if entry.positive == "up" else -heights) / metres)


def stores_heights(entry: GridEntry) -> bool:
    """Whether stored values are metres, positive up."""
    layer = entry.elevation
    return (layer.scale, layer.offset, entry.metres, entry.positive) == (1.0, 0.0, 1.0, "up")
