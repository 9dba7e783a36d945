"""Centroids of k-means kept in a folder: all steps of `ofec` and all bits of `plaid` begin with the same ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from tokenshard.retrieval.compression import hpc, ofec, plaid
from tokenshard.retrieval.compression.kmeans import trained_centroids
from tokenshard.retrieval.exact import Vectors


def keep_centroids(folder: Path) -> None:
    """From now on, in this process, codecs take the centroids of the same vectors, count and seed from there."""

    def kept(vectors: Vectors, count: int, seed: int) -> Vectors:
        name = hashlib.blake2b(np.ascontiguousarray(vectors), digest_size=8).hexdigest()
        file = folder / f"centroids-{name}-{count}-{seed}.npy"
        if not file.is_file():
            np.save(file, trained_centroids(vectors, count, seed))
        return np.asarray(np.load(file))

    for module in (hpc, ofec, plaid):
        module.trained_centroids = kept
