"""The clusters of the features of one clip, and how many of them there are.

Everything is decided by sums of integers below 2⁵³, which float64 holds exactly: the clusters are the same on any
machine, with any number of threads and any BLAS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNIT = 1 << 12
"""Length of a normalized feature, whose components are rounded to whole numbers."""
FEWEST = 12
"""Clusters from which an adaptive number begins (VQToken)."""
ITERATIONS = 10
SAMPLE = 4096
"""Most points that clusters are counted on."""
CANDIDATES = 4
"""Of which each seed is the best."""

Points = NDArray[np.float64]
"""Whole numbers [N, d]."""


@dataclass(frozen=True)
class Clusters:
    """Points in groups: ``ids`` int64 [N] below the number of groups, none of which is empty."""

    ids: NDArray[np.int64]
    count: int
    error: float
    """sum of squared distances to the centroids, in units of the points"""
    silhouette: float
    """mean of (b - a) / b, where a and b are a point's distances to the nearest two centroids (Hruschka et al. 2006);
    0 for a point that is alone"""


def normalized(features: NDArray[np.float32]) -> Points:
    """Directions of features [N, d] as whole numbers; k-means of them goes by the cosine."""
    lengths = np.sqrt(np.square(features, dtype=np.float64).sum(1, keepdims=True))
    points: Points = np.rint(features / np.maximum(lengths, 1e-12) * UNIT)
    return points


def clustered(points: Points, k: int) -> Clusters:
    """At most ``k`` clusters: k-means from greedy k-means++ seeds (Arthur and Vassilvitskii 2007)."""
    return _lloyd(points, seeds(_sample(points), k))


def adaptively_clustered(points: Points, most: int) -> Clusters:
    """As many clusters, from 12 to ``most``, as the points have by the mean silhouette; the fewest of equally good."""
    sample = _sample(points)
    drawn = seeds(sample, most)
    tried = [(_lloyd(sample, drawn[:count]).silhouette, -count) for count in _numbers(len(drawn))]
    return _lloyd(points, drawn[: -max(tried)[1]])


def _sample(points: Points) -> Points:
    """Points that tell how many clusters there are and where they begin."""
    if len(points) <= SAMPLE:
        return points
    return points[np.sort(np.random.default_rng(0).choice(len(points), SAMPLE, replace=False))]


def _numbers(most: int) -> list[int]:
    """The numbers of clusters that are tried: in steps of an eighth."""
    found = [min(FEWEST, most)]
    while found[-1] < most:
        found.append(min(most, found[-1] + max(1, found[-1] // 8)))
    return found


def seeds(points: Points, most: int) -> Points:
    """At most ``most`` distinct points, one after the other: of some that are drawn in proportion to their squared
    distance from those before, the one that leaves the smallest distances."""
    rng = np.random.default_rng(0)
    lengths = np.square(points).sum(1)
    first = int(rng.integers(len(points)))
    chosen, nearest = [first], _distances(points, lengths, points[first : first + 1])[:, 0]
    while len(chosen) < most and nearest.any():
        total = np.cumsum(nearest)
        drawn = np.searchsorted(total, np.floor(rng.random(CANDIDATES) * total[-1]), side="right")
        left = np.minimum(nearest[:, None], _distances(points, lengths, points[drawn]))
        best = int(left.sum(0).argmin())
        chosen.append(int(drawn[best]))
        nearest = left[:, best]
    return points[chosen]


def _distances(points: Points, lengths: NDArray[np.float64], centroids: Points) -> NDArray[np.float64]:
    """Squared, exact [N, K]."""
    found: Points = lengths[:, None] + np.square(centroids).sum(1) - 2 * (points @ centroids.T)
    return found


def _lloyd(points: Points, centroids: Points) -> Clusters:
    lengths = np.square(points).sum(1)
    distances = _distances(points, lengths, centroids)
    ids = distances.argmin(1)
    for _ in range(ITERATIONS):
        centroids = means(points, ids)
        distances = _distances(points, lengths, np.rint(centroids))
        before, ids = ids, distances.argmin(1)
        if np.array_equal(before, ids):
            break
    used, ids = np.unique(ids, return_inverse=True)
    distances = distances[:, used]
    return Clusters(ids, len(used), float(distances.min(1).sum()), _silhouette(distances, ids))


def means(values: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of the rows of each id that occurs, in order of the ids [K, d]."""
    order = np.argsort(ids, kind="stable")
    _, first, counts = np.unique(ids[order], return_index=True, return_counts=True)
    return np.add.reduceat(values[order], first, axis=0) / counts[:, None]


def _silhouette(distances: NDArray[np.float64], ids: NDArray[np.int64]) -> float:
    """Of squared distances [N, K]; rounded, so that the order in which a machine adds does not decide."""
    if distances.shape[1] < 2:
        return 0.0
    nearest = np.sqrt(np.partition(distances, 1, axis=1)[:, :2])
    ratio = 1 - nearest[:, 0] / np.maximum(nearest[:, 1], 1e-12)
    alone = np.bincount(ids)[ids] == 1
    return round(float(np.where(alone, 0.0, ratio).mean()), 6)
