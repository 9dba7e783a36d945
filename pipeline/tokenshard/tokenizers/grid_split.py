"""Patches of a field split into mean, gain and shape, in whole numbers: the first half of the `grid` tokenizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.tokenizers import lapped

GAINS = 16
"""Ids of gains. 0: below the floor; others are octaves."""
SCALE = 1 << 9
"""Shapes are in 1 / SCALE of the gain."""
REACH = 1 << 14
"""Cells of a shape are clipped to this; so are the projections of vectors."""
LARGEST_CELL = float(1 << 40)
"""Cells are clipped to this many units; what means leave of them to a 2 ** 16th of that."""


class Split(NamedTuple):
    """Patches in parts."""

    there: NDArray[np.bool_]
    """[rows, columns]: patches with a valid cell"""
    means: NDArray[np.float64]
    """[rows, columns], whole numbers of steps"""
    gains: NDArray[np.int64]
    """[rows, columns]"""
    shapes: NDArray[np.float64]
    """[rows, columns, d], whole numbers of gain / SCALE"""


class Rest(NamedTuple):
    """Patches, and what the means around them do not tell."""

    there: NDArray[np.bool_]
    """[rows, columns]: patches with a valid cell"""
    means: NDArray[np.float64]
    """[rows, columns], whole numbers of steps"""
    gains: NDArray[np.int64]
    """[rows, columns]: the size of what is left, in octaves from the floor on"""
    rest: NDArray[np.float64]
    """[rows, columns, d], whole units; 0 where there is no value"""
    valid: NDArray[np.bool_]
    """[rows, columns, d]"""


def rest_of(field: NDArray[Any], patch: tuple[int, int], surface: NDArray[np.int32], floor: int) -> Rest:
    """What the means of a field float [height, width] in steps (NaN: no value) leave. ``floor``: the least gain."""
    cells, valid = whole_cells(field, patch)
    there, means = patch_means(cells, valid)
    rest = np.where(valid, cells - lapped.surfaces(means, there, surface), 0)
    rest = np.clip(rest, -LARGEST_CELL / (1 << 16), LARGEST_CELL / (1 << 16))
    power = (rest * rest).sum(axis=2) / np.maximum(valid.sum(axis=2), 1)
    gains = np.searchsorted(np.ldexp(float(floor) * floor, 2 * np.arange(GAINS - 1)), power, side="right")
    return Rest(there, means, gains.astype(np.int64), rest, valid)


def split(field: NDArray[Any], patch: tuple[int, int], surface: NDArray[np.int32], floor: int) -> Split:
    """The parts of a field float [height, width] in steps (NaN: no value). ``floor``: the least gain, in units."""
    found = rest_of(field, patch, surface, floor)
    shapes = np.rint(found.rest * SCALE / scales(np.maximum(found.gains, 1), floor)[..., None])
    return Split(found.there, found.means, found.gains, np.clip(shapes, -REACH, REACH))


def shapes_of(gains: NDArray[np.int64], codebooks: int) -> NDArray[np.int64]:
    """How many shapes a patch of each id of a gain has: one an octave, as far as there are codebooks."""
    return np.minimum(gains, codebooks)


def scales(gains: NDArray[np.int64], floor: int) -> NDArray[np.float64]:
    """The gain of each id in units; 0 for id 0."""
    return np.where(gains > 0, np.ldexp(float(floor), gains - 1), 0.0)


def whole_cells(field: NDArray[Any], patch: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Patches [rows, columns, d] of a field in whole units, and their valid cells."""
    height, width = field.shape
    padded = np.full((height + -height % patch[0], width + -width % patch[1]), np.nan)
    padded[:height, :width] = field
    cut = lapped.patches(padded, patch)
    valid = ~np.isnan(cut)
    limit = LARGEST_CELL / lapped.UNIT
    return np.rint(np.where(valid, np.clip(cut, -limit, limit), 0) * lapped.UNIT), valid


def patch_means(cells: NDArray[np.float64], valid: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which patches have a valid cell, and the means of those cells in whole steps; sums of integers are exact."""
    counts = valid.sum(axis=2)
    return counts > 0, np.floor(cells.sum(axis=2) / (np.maximum(counts, 1) * lapped.UNIT) + 0.5)


def projected(shapes: NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.int16]:
    """Shapes [N, d] along axes times SCALE [r, d], in units of the shapes: whole numbers, exactly."""
    sums = shapes @ axes.T  # whole numbers below 2⁵³
    return np.clip(np.floor(sums / SCALE + 0.5), -REACH, REACH).astype(np.int16)
