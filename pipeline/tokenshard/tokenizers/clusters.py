"""Weighted k-means over the vectors of a codebook: which codes become one, and what that one stands for.

Codebooks are small, so everything is float64 and added up in one fixed order: equal codebooks, weights and seeds give
equal clusters, whatever the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 60
MOST_MERGED = 4096
"""Codes of which all pairs are compared to find where to start."""
_CHUNK = 1 << 24
"""Distances held at a time."""


class Clusters(NamedTuple):
    """Codes in clusters that are numbered by their lowest code."""

    members: NDArray[np.int32]
    """[K]: the cluster of each code"""
    centroids: NDArray[np.float32]
    """[clusters, d]: the weighted mean of the vectors of each"""


def cluster_codes(vectors: NDArray[np.floating], weights: NDArray[np.generic], k: int, seed: int) -> Clusters:
    """At most ``k`` clusters of code vectors [K, d], each code counted ``weights`` [K] times; no cluster is empty.

    Lloyd's algorithm from the clusters of Ward (1963), which suit the few codes of each far better than random ones:
    one sixth to one fourth less distortion with four codes a cluster. Larger codebooks start from k-means++ seeds
    (Arthur and Vassilvitskii 2007), which ``seed`` draws. Codes without weight go to the nearest cluster and move none;
    where fewer than ``k`` codes with weight differ, there are only so many clusters.
    """
    points, mass = vectors.astype(np.float64), weights.astype(np.float64)
    if not mass.any():
        mass = np.ones(len(points))
    different, place = np.unique(points[mass > 0], axis=0, return_inverse=True)
    heavy: NDArray[np.float64] = np.bincount(place.ravel(), mass[mass > 0]).astype(np.float64)
    if len(different) <= MOST_MERGED:
        centroids = _merged(different, heavy, k)
    else:
        centroids = different[_seeds(different, heavy, k, np.random.default_rng(seed))]
    members, distances = _nearest(points, centroids)
    for _ in range(ITERATIONS):
        centroids = _means(points, mass, members, distances, centroids)
        before = members
        members, distances = _nearest(points, centroids)
        if np.array_equal(before, members):
            break
    used, members = np.unique(np.where(mass > 0, members, -1), return_inverse=True)
    kept = used[used >= 0]
    members, _ = _nearest(points, centroids[kept])
    first = np.full(len(kept), len(points))
    np.minimum.at(first, members, np.arange(len(points)))
    order = np.argsort(first, kind="stable")
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order))
    return Clusters(places[members], centroids[kept][order].astype(np.float32))


def _merged(points: NDArray[np.float64], mass: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Means of at most k groups, made by merging the two whose sum of squares grows least, again and again (Ward).

    Chains of nearest neighbours (Murtagh 1983) find the same merges in n² steps: two groups that are each other's
    nearest are merged sooner or later whatever happens elsewhere.
    """
    weight = mass.copy()
    cost = np.zeros((len(points), len(points)))
    for axis in points.T:
        cost += (axis[:, None] - axis) ** 2
    cost *= weight[:, None] * weight / (weight[:, None] + weight)
    np.fill_diagonal(cost, np.inf)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < len(points) - 1:
        if not chain:
            chain = [int(np.argmax(weight > 0))]
        last = chain[-1]
        nearest = int(cost[last].argmin())
        if len(chain) == 1 or cost[last, nearest] < cost[last, chain[-2]]:
            chain.append(nearest)
            continue
        one, other = chain.pop(), chain.pop()
        merges.append((float(cost[one, other]), one, other))
        both = weight[one] + weight[other]
        grown = (weight[one] + weight) * cost[one] + (weight[other] + weight) * cost[other] - weight * cost[one, other]
        cost[one] = cost[:, one] = grown / (both + weight)
        cost[one, one] = cost[other] = cost[:, other] = np.inf
        weight[one], weight[other] = both, 0
    groups = np.arange(len(points))
    for _, one, other in sorted(merges, key=lambda merge: merge[0])[: max(0, len(points) - k)]:
        groups[groups == groups[other]] = groups[one]
    groups = np.unique(groups, return_inverse=True)[1]
    sums = np.stack([np.bincount(groups, mass * axis) for axis in points.T], axis=1)
    means: NDArray[np.float64] = sums / np.bincount(groups, mass)[:, None]
    return means


def _seeds(points: NDArray[np.float64], mass: NDArray[np.float64], k: int, rng: np.random.Generator) -> list[int]:
    """Indices of at most k different points; each is drawn by its mass times its squared distance to those before."""
    chosen: list[int] = []
    score = mass.copy()
    distances = np.full(len(points), np.inf)
    while len(chosen) < k and score.any():
        chosen.append(
            int(np.searchsorted(np.cumsum(score), rng.random() * score.sum(), "right").clip(0, len(score) - 1))
        )
        distances = np.minimum(distances, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        score = mass * distances
    return chosen


def _nearest(
    points: NDArray[np.float64], centroids: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The nearest centroid of each point (the first on ties), and the squared distance to it."""
    members, distances = np.empty(len(points), np.intp), np.empty(len(points))
    step = max(1, _CHUNK // len(centroids))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        table = np.zeros((len(part), len(centroids)))
        for axis in range(points.shape[1]):
            difference = part[:, axis, None] - centroids[:, axis]
            table += difference * difference
        members[start : start + step] = table.argmin(axis=1)
        distances[start : start + step] = table.min(axis=1)
    return members, distances


def _means(
    points: NDArray[np.float64],
    mass: NDArray[np.float64],
    members: NDArray[np.intp],
    distances: NDArray[np.float64],
    centroids: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Weighted means of the clusters. One without weight moves to the point that costs most where it is."""
    totals = np.bincount(members, mass, len(centroids))
    sums = np.stack([np.bincount(members, mass * axis, len(centroids)) for axis in points.T], axis=1)
    moved = centroids.copy()
    moved[totals > 0] = sums[totals > 0] / totals[totals > 0, None]
    empty = np.flatnonzero(totals == 0)
    dearest = np.argsort(-mass * distances, kind="stable")[: len(empty)]
    dearest = dearest[(mass * distances)[dearest] > 0]
    moved[empty[: len(dearest)]] = points[dearest]
    return moved
