"""Which linear predictors a plane is coded with: the best of those shipped, or its own where that pays."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.bounded.binary import kernel
from tokenshard.grids.bounded.scan import CAUSAL, CENTRES, GUIDED, OFFSETS, SIDES, TAPS
from tokenshard.grids.bounded.values import Plane

SAMPLE = 8_000
"""Cells of a plane that predictors are compared on, at most."""
OWN_BITS = 12
"""Fractional bits of a plane's own weights in its stream."""
LARGEST = 8 << OWN_BITS
"""The largest of these."""
_REACH = 4
COST = 16
"""Bits of an own weight that its gain must pay: those of its bytes, and some for what estimates promise too much."""
WRONG = 0.3
"""Spread of the errors that taps are given, as a share of the slack: most errors of a smooth plane are far below it."""


def neighbourhoods(
    plane: Plane,
    valid: NDArray[np.bool_],
    kind: int,
    slack: int,
    limit: int = SAMPLE,
    guide: Plane | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Taps ``[n, TAPS]`` of cells that have them all, and the cells' values ``[n]``, relative to the nearest four.

    Those of the finest pass. Taps are made wrong, as a decoder will find them.
    """
    cells, around = _places(plane.shape, kind, limit)
    if not valid.all():
        whole = valid.ravel()[around].all(1) & valid.ravel()[cells]
        cells, around = cells[whole], around[whole]
    taps = plane.ravel()[around].astype(np.float64)
    taps += (-slack + 2 * slack * _draws()[: len(taps)]) * WRONG
    reference = taps[:, :4].mean(1)
    if guide is not None:
        shown, width = guide.ravel(), guide.shape[1]
        moved = reference - shown[around[:, :4]].mean(1)
        taps[:, -2] = (shown[cells + 1] + shown[cells + width]) / 2 + moved
        taps[:, -1] = shown[cells] + moved
    return taps - reference[:, None], plane.ravel()[cells] - reference


@lru_cache(maxsize=8)
def _places(shape: tuple[int, int], kind: int, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cells that are looked at, ``[n]``, and their taps, ``[n, TAPS]``: places in the flat plane."""
    height, width = shape
    rows, columns = np.arange(_REACH, height - _REACH), np.arange(_REACH, width - _REACH)
    if kind == CENTRES:
        rows, columns = rows[rows % 2 == 1], columns[columns % 2 == 1]
    y, x = (part.reshape(-1) for part in np.meshgrid(rows, columns, indexing="ij"))
    if kind == SIDES:
        odd = (y + x) % 2 == 1
        y, x = y[odd], x[odd]
    if y.size > limit:
        chosen = np.arange(limit) * y.size // limit
        y, x = y[chosen], x[chosen]
    steps = OFFSETS[kind, :, 0] * width + OFFSETS[kind, :, 1]
    cells = y * width + x
    return cells, cells[:, None] + steps


@cache
def _draws() -> NDArray[np.float64]:
    """``[SAMPLE, TAPS]`` from 0 to 1, the same in every process."""
    return np.random.default_rng(0).random((SAMPLE, TAPS))


@kernel
def fitted(taps: Any, values: Any, noise: Any) -> Any:
    """Weights ``[TAPS]`` of least squares in which rough places count less, as they cost bits by their logarithm.

    By Cholesky's method, in the order written here: the weights, and so the streams, are the same on every machine.
    """
    size = taps.shape[1]
    left, right = np.zeros((size, size)), np.zeros(size)
    total = 0.0
    for n in range(taps.shape[0]):
        texture = 0.0
        for i in range(8):
            texture += taps[n, i] * taps[n, i]
        weight = 1 / (noise * noise + texture / 8)
        total += weight
        for i in range(size):
            part = weight * taps[n, i]
            right[i] += part * values[n]
            for j in range(i + 1):
                left[i, j] += part * taps[n, j]
    for i in range(size):
        left[i, i] += 1e-3 * total * noise * noise + 1e-9
    for i in range(size):
        for j in range(i + 1):
            rest = left[i, j]
            for k in range(j):
                rest -= left[i, k] * left[j, k]
            left[i, j] = np.sqrt(max(rest, 1e-30)) if i == j else rest / left[j, j]
        rest = right[i]
        for k in range(i):
            rest -= left[i, k] * right[k]
        right[i] = rest / left[i, i]
    for i in range(size - 1, -1, -1):
        rest = right[i]
        for k in range(i + 1, size):
            rest -= left[k, i] * right[k]
        right[i] = rest / left[i, i]
    return right


@kernel
def bits_lost(taps: Any, values: Any, weights: Any, noise: Any) -> Any:
    """Mean logarithm of the error: bits a cell, up to a constant that is the same for all weights.

    The logarithm is linear between powers of two, which needs no library that may differ.
    """
    total = 0.0
    for n in range(taps.shape[0]):
        error = values[n]
        for i in range(taps.shape[1]):
            error -= taps[n, i] * weights[i]
        mantissa, exponent = math.frexp(abs(error) + noise)
        total += exponent + 2 * mantissa
    return total / taps.shape[0]


def choose(
    plane: Plane,
    valid: NDArray[np.bool_],
    levels: int,
    slack: int,
    sets: NDArray[np.int64],
    guide: Plane | None = None,
) -> tuple[int, NDArray[np.int64] | None]:
    """(number of the best set, the plane's own weights int64 ``[kinds of the finest pass, TAPS]`` where they pay)."""
    noise = slack + 0.5
    kinds = (CENTRES, SIDES) if levels else (CAUSAL,)
    sets = sets if guide is None else unguided(sets)
    shared, own_cost, own = np.zeros(len(sets)), 0.0, []
    share_of_cells = {CAUSAL: 1.0, CENTRES: 0.25, SIDES: 0.5}
    for kind in kinds:
        taps, values = neighbourhoods(plane, valid, kind, slack, guide=guide)
        if values.size < 4 * TAPS:
            return 0, None
        part = share_of_cells[kind]
        shared += [part * bits_lost(taps, values, weights[kind] / 65536, noise) for weights in sets]
        found = fitted(taps, values, noise) * (1 << OWN_BITS)
        usable = bool((np.abs(found) <= LARGEST).all())  # and not NaN
        weights = np.rint(np.where(usable, found, 0)).astype(np.int64)
        own.append(weights)
        own_cost += part * bits_lost(taps, values, weights / (1 << OWN_BITS), noise) if usable else math.inf
    best = int(np.argmin(shared))
    pays = (shared[best] - own_cost) * valid.sum() > COST * TAPS * len(kinds)
    return best, np.stack(own) if pays else None


def unguided(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Weights ``[..., TAPS]`` that were fitted without a guide, for taps where it has taken the last places."""
    found = weights.copy()
    found[..., -GUIDED:] = 0
    return found
