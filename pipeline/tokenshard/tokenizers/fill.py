"""Fills ids that were lost: each place gets the code nearest to the mean vector of its neighbours in the token grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def fill_lost(ids: NDArray[Any], known: NDArray[np.bool_], codebook: NDArray[np.floating]) -> NDArray[Any]:
    """Ids [*grid] with those that are not ``known`` [*grid] replaced; ``codebook`` [K, d] are the vectors of ids.

    Places beside known ones are filled first, from all neighbours along all axes; then those beside them, and so on.
    Where nothing is known, every id is the code nearest to the origin: no residual, for the later levels of RVQ.
    """
    lost = np.argwhere(~known)
    if not len(lost):
        return ids
    vectors = np.zeros((*known.shape, codebook.shape[1]))
    vectors[known] = codebook[ids[known]]
    filled, waiting = known.copy(), ~known
    while waiting.any() and filled.any():
        sums, counts = _neighbours(vectors * filled[..., None]), _neighbours(filled.astype(np.float64)[..., None])
        now = waiting & (counts[..., 0] > 0)
        vectors[now] = sums[now] / counts[now]
        filled |= now
        waiting &= ~now
    out = ids.copy()
    out[~known] = _nearest(vectors[~known], codebook)
    return out


def _neighbours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the places before and behind along each axis but the last."""
    total = np.zeros_like(values)
    for axis in range(values.ndim - 1):
        front = tuple(slice(1, None) if a == axis else slice(None) for a in range(values.ndim))
        back = tuple(slice(None, -1) if a == axis else slice(None) for a in range(values.ndim))
        total[front] += values[back]
        total[back] += values[front]
    return total


def _nearest(vectors: NDArray[np.float64], codebook: NDArray[np.floating]) -> NDArray[np.intp]:
    squares = (codebook.astype(np.float64) ** 2).sum(axis=1)
    step = max(1, (1 << 22) // len(codebook))
    parts = [vectors[start : start + step] @ codebook.T for start in range(0, len(vectors), step)]
    return np.concatenate([(squares - 2 * part).argmin(axis=1) for part in parts])
