"""Harmonic interpolation: each cell of a gap is the mean of its four neighbours, the smoothest way across."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRECISION = 1e-8
"""Residual that is left, of the size of what is solved for."""


def harmonic(values: NDArray[np.float64], known: NDArray[np.bool_], gap: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values [h, w] of the cells of a gap by those that are known beside it; NaN in all others.

    Cells that are neither known nor of the gap, and the edge of the array, are walls that nothing flows through. Parts
    of a gap that touch no known cell stay without a value.
    """
    from scipy import ndimage, sparse
    from scipy.sparse import linalg

    found = np.full(values.shape, np.nan)
    labels, count = ndimage.label(gap & ~known)
    touched = np.unique(labels[ndimage.binary_dilation(known) & gap])
    inside = np.isin(labels, touched[touched > 0]) if count else np.zeros(gap.shape, np.bool_)
    if not inside.any():
        return found
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    guess = values[tuple(nearest)][inside]
    numbers = np.full(values.shape, -1)
    numbers[inside] = np.arange(inside.sum())
    degree, right = np.zeros(len(guess)), np.zeros(len(guess))
    pairs = []
    for axis in (0, 1):
        for step in (1, -1):
            here, beyond = _neighbours(axis, step)
            own, other = numbers[here], numbers[beyond]
            both, edge = (own >= 0) & (other >= 0), (own >= 0) & known[beyond]
            np.add.at(degree, own[both | edge], 1)
            np.add.at(right, own[edge], values[beyond][edge])
            pairs.append((own[both], other[both]))
    rows, columns = (np.concatenate(part) for part in zip(*pairs, strict=True))
    matrix = sparse.diags(degree) - sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(guess), len(guess)))
    middle = float(guess.mean())
    solved, _ = linalg.cg(matrix, right - matrix @ np.full(len(guess), middle), guess - middle, rtol=PRECISION)
    found[inside] = solved + middle
    return found


def _neighbours(axis: int, step: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Cells, and those one further along an axis."""
    low, high, whole = slice(None, -1), slice(1, None), slice(None)
    here, beyond = (low, high) if step > 0 else (high, low)
    return ((here, whole), (beyond, whole)) if axis == 0 else ((whole, here), (whole, beyond))
