"""What is known of a cell when it is decoded, by which widths are told apart: roughness, depth, and how it was sounded.

Roughness is the standard deviation of what was decoded in a cell's block of 8 × 8: a number that needs no truth and no
certain tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.grids.widths import BLOCK, blocks
from tokenshard.spec.grids import GridEntry

BY = ("roughness", "depth", "tid")
DEPTHS = (0.0, 50.0, 200.0, 1000.0, 4000.0)
"""Metres between bands of depth: land, harbours and coasts, shelf, slope, deep sea, abyss."""
_TID = re.compile(r"(^|_)tid($|_)|type.?id", re.IGNORECASE)
_TENS = 10
FINEST = 2.0**-7
"""The least roughness of real numbers, in their unit."""


def checked_by(by: Sequence[str]) -> tuple[str, ...]:
    """What widths are told apart by, in the order of :data:`BY`. Raises SpecError for anything else."""
    for name in by:
        if name not in BY:
            raise SpecError(f"cells cannot be told apart by {name!r}; there are: {', '.join(BY)}")
    if "roughness" not in by:
        raise SpecError("give roughness first, and depth or tid beside it: --by roughness,depth")
    return tuple(name for name in BY if name in by)


def least_roughness(entry: GridEntry, token_step: float | None) -> float:
    """What a block is at least taken for, in the unit of the grid: twice the step of its values, or what rounding the
    means of patches may cost where their steps are given."""
    least = 2 * abs(entry.elevation.scale) if np.dtype(entry.elevation.dtype).kind in "iu" else FINEST
    return least if token_step is None else max(least, token_step / 2)


def roughness_of(
    decoded: NDArray[np.float64], valid: NDArray[np.bool_], least: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """``[h, w]``: of each cell, the deviation of the decoded values of its block, with ``least`` added to it as if both
    were independent."""
    there = blocks(valid & np.isfinite(decoded), False)
    values = np.where(there, blocks(decoded, 0.0), 0.0)
    count = np.maximum(there.sum(2), 1)
    mean = values.sum(2) / count
    power = (np.where(there, values - mean[:, :, None], 0.0) ** 2).sum(2) / count
    spread = np.repeat(np.repeat(np.sqrt(power), BLOCK, 0), BLOCK, 1)
    found: NDArray[np.float64] = np.hypot(spread[: decoded.shape[0], : decoded.shape[1]], least)
    return found


def group_of(
    decoded: NDArray[np.float64], source: NDArray[Any] | None, entry: GridEntry, by: Sequence[str]
) -> NDArray[np.int64] | None:
    """``[h, w]``: number of the band of depth and kind of sounding of each cell; None by roughness alone."""
    if set(by) <= {"roughness"}:
        return None
    group = np.zeros(decoded.shape, np.int64)
    if "depth" in by:
        metres = np.nan_to_num(decoded) * (entry.metres or 1.0)
        depth = -metres if entry.positive == "up" else metres
        group += _TENS * np.searchsorted(np.array(DEPTHS), depth, side="right")
    if "tid" in by:
        assert source is not None, "read where check_by let it pass"
        group += np.clip(source.astype(np.int64) // _TENS, 0, _TENS - 1)
    return group


def check_by(entry: GridEntry, by: Sequence[str]) -> None:
    """Raises SpecError where a grid does not say what it would be told apart by."""
    if "depth" in by and entry.metres is None:
        raise SpecError(f"{entry.uri}: has the unit {entry.units!r}, which is no depth; leave depth out of --by")
    layer = entry.layer("source")
    if "tid" in by and (layer is None or not _TID.search(layer.name)):
        raise SpecError(f"{entry.uri}: has no layer of type identifiers (TID); leave tid out of --by")
