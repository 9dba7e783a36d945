"""Centroid and residual buckets of ColBERTv2 and PLAID (arXiv:2112.01488, arXiv:2205.09707)."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import kernels
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, numbers
from tokenshard.retrieval.compression.checks import as_ids, checked_ids, checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.grid import GridScorer, pack_rows, unpack_rows
from tokenshard.retrieval.compression.kmeans import trained_centroids
from tokenshard.retrieval.exact import Multivectors, Vectors

_MIN_POINTS = 8


class Plaid(Compressor):
    """``plaid:BITS[,CENTROIDS]``: id of the nearest of 2^floor(log2(16 sqrt N)) centroids on the sphere, and each
    component of the residual as one of 2^BITS buckets of equal occupancy. Decoded vectors have length 1."""

    name: ClassVar[str] = "plaid"
    learned: ClassVar[bool] = True
    streams: ClassVar[tuple[str, ...]] = ("residual",)

    def __init__(
        self, bits: int, centroids: NDArray[np.float16], cutoffs: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> None:
        self.bits, self.cutoffs, self.weights, self._stored = bits, cutoffs, weights, centroids
        self.centroids: Vectors = centroids.astype(np.float32)
        self.dimensions = centroids.shape[1]
        self.alphabets = (len(centroids),)

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        options = numbers(cls.name, arguments, {"bits": int, "centroids": int}, 1)
        if options["bits"] not in (1, 2, 4, 8) or not 1 <= options.get("centroids", 1) <= 1 << 20:
            raise SpecError("codec plaid has 1, 2, 4 or 8 bits and 1 to 2^20 centroids")
        return options

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        vectors = checked_sample(sample)
        count = options.get("centroids") or 1 << int(np.log2(16 * np.sqrt(options.get("expected") or len(vectors))))
        centroids = trained_centroids(vectors, max(1, min(count, len(vectors) // _MIN_POINTS)), seed)
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        halves = centroids.astype(np.float16)
        rounded = halves.astype(np.float32)
        residuals = vectors - rounded[kernels.nearest(vectors, rounded)]
        buckets = 1 << options["bits"]
        cutoffs = np.quantile(residuals, np.arange(1, buckets) / buckets).astype(np.float32)
        weights = np.quantile(residuals, (np.arange(buckets) + 0.5) / buckets).astype(np.float32)
        return cls(options["bits"], halves, cutoffs, weights)

    def encode(self, pages: Multivectors) -> Encoded:
        vectors = checked_vectors(pages, self.dimensions)
        ids = kernels.nearest(vectors, self.centroids)
        buckets = np.searchsorted(self.cutoffs, vectors - self.centroids[ids]).astype(np.uint8)
        stream = pack_rows(buckets, self.bits, pages.offsets)
        return Encoded(pages.offsets, as_ids(ids, self.alphabets[0])[None], {"residual": stream})

    def decode(self, encoded: Encoded) -> Multivectors:
        return self.open(encoded).vectors()

    def open(self, encoded: Encoded) -> GridScorer:
        ids = checked_ids(encoded, self.alphabets)[0].astype(np.int32)
        buckets = unpack_rows(encoded.streams["residual"], "residual", self.dimensions, self.bits, encoded.offsets)
        sizes = np.empty(len(ids), np.float32)
        for first in range(0, len(ids), _BLOCK):
            part = slice(first, first + _BLOCK)
            sizes[part] = np.linalg.norm(self.centroids[ids[part]] + self.weights[buckets[part]], axis=1)
        factors: Vectors = np.reciprocal(np.maximum(sizes, np.float32(1e-12)))
        segments, extra = np.zeros(self.dimensions, np.int64), np.zeros((len(ids), 0), np.float32)
        axes = np.eye(self.dimensions, dtype=np.float32)
        return GridScorer(
            encoded.offsets,
            buckets,
            self.weights,
            factors[:, None],
            segments,
            axes,
            self.centroids,
            extra,
            ids,
            factors,
        )

    def config(self) -> Config:
        return {"bits": self.bits}

    def arrays(self) -> Arrays:
        return {"centroids": self._stored, "cutoffs": self.cutoffs, "weights": self.weights}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        bits: Any = cls.parse((str(config["bits"]),))["bits"]
        cutoffs = stored(arrays, "cutoffs", np.float32, ((1 << bits) - 1,))
        weights = stored(arrays, "weights", np.float32, (1 << bits,))
        return cls(bits, stored(arrays, "centroids", np.float16, (None, None)), cutoffs, weights)


_BLOCK = 1 << 15
