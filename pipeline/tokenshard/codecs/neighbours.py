"""Where the neighbours of an id lie in the flat ids of its sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Grids
from tokenshard.codecs.model import Neighbour

_AXIS: dict[Neighbour, tuple[int, int]] = {
    "left": (1, 1), "left2": (1, 2), "up": (2, 1), "previous": (3, 1), "earlier": (0, 0)
}  # fmt: skip
"""Axis (from the last one, 1) and places back along it; 0 for the same place."""


def neighbour_strides(grids: Grids, neighbours: tuple[Neighbour, ...]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """How many ids before an id its neighbours lie, and the run of ids in which they exist.

    Both uint64 [samples, neighbours]. Position ``p`` of a sample has the neighbour ``p - stride`` where
    ``p % period >= stride``. The id of the level before has a stride of 0: it is always there.
    """
    runs = [np.ones(len(grids), np.uint64)]  # 1, W, H W, T H W
    for axis in range(1, 4):
        runs.append(runs[-1] * grids[:, -axis].astype(np.uint64) if axis <= grids.shape[1] else runs[-1])
    strides = [np.uint64(back) * runs[max(axis - 1, 0)] for axis, back in (_AXIS[name] for name in neighbours)]
    return np.stack(strides, axis=1), np.stack([runs[_AXIS[name][0]] for name in neighbours], axis=1)
