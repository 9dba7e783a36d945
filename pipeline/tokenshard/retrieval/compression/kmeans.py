"""Centroids by k-means, trained by faiss, and an order of them that puts similar ones side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tokenshard.errors import SpecError
from tokenshard.retrieval.exact import Vectors

ROUNDS = 10
POINTS = 64
"""Vectors a centroid that k-means sees, at most."""
_POWER_ROUNDS = 12


def trained_centroids(vectors: Vectors, count: int, seed: int, rounds: int = ROUNDS, points: int = POINTS) -> Vectors:
    """float32 [count, d], or one a vector where there are fewer vectors (Lloyd's iteration from a random start)."""
    faiss = faiss_library()
    if len(vectors) <= count:
        return np.ascontiguousarray(vectors[np.arange(count) % len(vectors)])
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=rounds,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=points,
    )
    with threadpool_limits(1):  # sums depend on threads
        kmeans.train(vectors)
    return np.ascontiguousarray(kmeans.centroids, np.float32)


def tree_order(centroids: Vectors) -> NDArray[np.int64]:
    """An order [K] in which the centroids of each half, quarter, … are alike: each part is split at the median along
    its principal axis. The halves are those of the `multiset` codec, ``(first + last) // 2``."""
    order = np.arange(len(centroids))
    parts = [(0, len(order))]
    while parts:
        first, last = parts.pop()
        if last - first < 3:
            continue
        own = centroids[order[first:last]].astype(np.float64)
        own -= own.mean(0)
        axis = own[np.argmax(np.einsum("kd,kd->k", own, own))]
        for _ in range(_POWER_ROUNDS):
            axis = own.T @ (own @ axis)
            size = np.linalg.norm(axis)
            if size == 0:
                break
            axis /= size
        order[first:last] = order[first:last][np.argsort(own @ axis, kind="stable")]
        middle = (first + last) // 2
        parts += [(first, middle), (middle, last)]
    return order


def faiss_library() -> Any:
    """The module. Raises SpecError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise SpecError("codebooks are trained by faiss: pip install 'tokenshard[documents]'") from error
    return faiss
