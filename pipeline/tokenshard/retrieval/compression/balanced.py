"""`balanced`: codewords that stand for equally many vectors each (RepCONC, Zhan et al., arXiv:2110.05789).

Vectors are assigned by optimal transport to codewords of equal shares (Sinkhorn and Knopp; Cuturi, 2013), so that no id
is rare, and each codeword becomes the mean of its own.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.codewords import Codewords
from tokenshard.retrieval.compression.held_out import Lessons
from tokenshard.retrieval.exact import Multivectors, Vectors

ROUNDS = 6
BATCH = 4096
"""Vectors that are assigned together."""
BATCHES = 8
SHARPNESS = 100.0
"""Inverse of the entropic penalty, for squared distances scaled to -1 … 1."""
_SINKHORN_ROUNDS = 50


def balanced(plain: Compressor, sample: Multivectors, lessons: Lessons, seed: int) -> Compressor:
    """The method with balanced codewords."""
    fitted = cast(Codewords, plain)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(sample.vectors))[: BATCH * BATCHES])
    parts = fitted.parts(np.ascontiguousarray(sample.vectors[chosen]))
    books = [_rounds(part, codebook) for part, codebook in zip(parts, fitted.codebooks, strict=True)]
    return cast(Compressor, fitted.with_codebooks(np.stack(books)))


def _rounds(vectors: Vectors, codebook: Vectors) -> Vectors:
    for _ in range(ROUNDS):
        own = np.concatenate([shares(batch, codebook).argmax(1) for batch in _batches(vectors)])
        sums = np.zeros(codebook.shape, np.float64)
        np.add.at(sums, own, vectors)
        counts = np.bincount(own, minlength=len(codebook))[:, None]
        codebook = np.where(counts > 0, sums / np.maximum(counts, 1), codebook).astype(np.float32)
    return codebook


def shares(vectors: Vectors, codebook: Vectors) -> NDArray[np.float64]:
    """Transport plan [n, K] from vectors [n, w] to codewords [K, w] that all take the same."""
    wide, words = vectors.astype(np.float64), codebook.astype(np.float64)
    distances = (wide**2).sum(1)[:, None] - 2 * wide @ words.T + (words**2).sum(1)
    least, most = distances.min(), distances.max()
    scaled = 2 * (distances - least) / max(most - least, 1e-12) - 1
    plan = np.exp(-SHARPNESS * (scaled - scaled.min(1, keepdims=True)))
    columns = np.ones(len(codebook))
    for _ in range(_SINKHORN_ROUNDS):
        rows = 1 / (plan @ columns)
        columns = len(vectors) / len(codebook) / np.maximum(rows @ plan, 1e-300)
    return cast("NDArray[np.float64]", plan * rows[:, None] * columns)


def _batches(vectors: Vectors) -> list[Vectors]:
    return [vectors[first : first + BATCH] for first in range(0, len(vectors), BATCH)]
