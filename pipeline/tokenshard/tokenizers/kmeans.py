"""Lloyd's k-means on integer vectors with integer centroids. Trains the codebook of `patch`.

Assignment is an exact integer search and each mean an exact sum divided once, so the same points and seed give the same
centroids on any machine and for any number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenshard.tokenizers.nearest import build_tree, nearest


def integer_kmeans(points: NDArray[np.int16], k: int, seed: int, iterations: int) -> NDArray[np.int16]:
    """Centroids int16 [k, r] of points int16 [N, r], N >= k, from distinct points drawn at random.

    With fewer distinct points than ``k``, surplus centroids stay unused copies: the lowest id wins every tie.
    """
    reach = float(np.sqrt((points.astype(np.int64) ** 2).sum(axis=1).max()))
    centroids = _distinct_points(points[np.random.default_rng(seed).permutation(len(points))], k)
    for _ in range(iterations):
        ids, distances = nearest(points, build_tree(centroids, reach))
        centroids = updated_centroids(points, ids, distances, k)
    return centroids


def updated_centroids(
    points: NDArray[np.int16], ids: NDArray[np.int32], distances: NDArray[np.int64], k: int
) -> NDArray[np.int16]:
    """The mean of the points of each id, rounded half up: one step of Lloyd's algorithm.

    A centroid without points moves to one of the points farthest from their own centroids; where every point already
    is its own centroid, it becomes a copy of the first.
    """
    counts = np.bincount(ids, minlength=k)
    used = counts > 0
    means = sums_by_id(points, ids, k)[used] / counts[used, None]
    centroids = np.repeat(np.floor(means[:1] + 0.5), k, axis=0).astype(np.int16)
    centroids[used] = np.floor(means + 0.5)
    empty = np.flatnonzero(~used)
    farthest = np.argsort(-distances, kind="stable")[: len(empty)]
    farthest = farthest[distances[farthest] > 0]
    centroids[empty[: len(farthest)]] = points[farthest]
    return centroids


def sums_by_id(values: NDArray[np.integer], ids: NDArray[np.int32], k: int) -> NDArray[np.float64]:
    """Sums [k, d] of the rows of ``values`` [N, d] that share an id: exact, as they are integers below 2⁵³."""
    return np.stack([np.bincount(ids, weights=column, minlength=k) for column in values.T], axis=1)


def _distinct_points(points: NDArray[np.int16], k: int) -> NDArray[np.int16]:
    """The first k distinct points in order; the first one is repeated where there are not as many."""
    for head in (points[: 4 * k], points):
        first = np.sort(np.unique(head, axis=0, return_index=True)[1])[:k]
        if len(first) == k:
            break
    return np.concatenate([points[first], np.repeat(points[:1], k - len(first), axis=0)])
