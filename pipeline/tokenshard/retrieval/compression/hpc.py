"""One k-means id a vector, as HPC-ColPali has it (arXiv:2506.21601): the measured baseline of everything else.

The paper's table is an estimate, as its section V says; what the method keeps on real vectors is in `RESULTS.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import kernels
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, Scorer, numbers
from tokenshard.retrieval.compression.checks import as_ids, checked_ids, checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.kmeans import trained_centroids
from tokenshard.retrieval.exact import Multivectors, Vectors


class Hpc(Compressor):
    """``hpc:K``: log2 K bits a vector."""

    name: ClassVar[str] = "hpc"
    learned: ClassVar[bool] = True

    def __init__(self, centroids: NDArray[np.float16]) -> None:
        self.centroids: Vectors = centroids.astype(np.float32)
        self.codebooks: Vectors = self.centroids[None]
        self._stored = centroids
        self.dimensions = centroids.shape[1]
        self.alphabets = (len(centroids),)

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        options = numbers(cls.name, arguments, {"centroids": int}, 0)
        if not 2 <= options.get("centroids", 2) <= 1 << 20:
            raise SpecError("codec hpc has 2 to 2^20 centroids")
        return options

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        count = options.get("centroids", 256)
        return cls(trained_centroids(checked_sample(sample), count, seed).astype(np.float16))

    def encode(self, pages: Multivectors) -> Encoded:
        ids = kernels.nearest(checked_vectors(pages, self.dimensions), self.centroids)
        return Encoded(pages.offsets, as_ids(ids, self.alphabets[0])[None])

    def parts(self, vectors: Vectors) -> Vectors:
        """As :class:`~tokenshard.retrieval.compression.codewords.Codewords` has it."""
        return vectors[None]

    def with_codebooks(self, codebooks: Vectors) -> Self:
        return type(self)(codebooks[0].astype(np.float16))

    def decode(self, encoded: Encoded) -> Multivectors:
        return Multivectors(self.centroids[checked_ids(encoded, self.alphabets)[0]], encoded.offsets)

    def open(self, encoded: Encoded) -> LookupScorer:
        ids = checked_ids(encoded, self.alphabets)
        return LookupScorer(ids.T.copy(), encoded.offsets, (self.centroids,))

    def config(self) -> Config:
        return {}

    def arrays(self) -> Arrays:
        return {"centroids": self._stored}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        return cls(stored(arrays, "centroids", np.float16, (None, None)))


@dataclass(frozen=True)
class LookupScorer(Scorer):
    """Vectors that are a sum of codewords: ``ids`` [N, levels], ``codebooks`` [K, d] a level."""

    ids: NDArray[Any]
    offsets: NDArray[np.int64]
    codebooks: tuple[Vectors, ...]

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes

    def prepare(self, query: Vectors) -> kernels.Tables:
        return [
            (np.concatenate([codebook @ columns for codebook in self.codebooks]), count, lanes)
            for columns, count, lanes in kernels.query_tables(query)
        ]

    def score(self, prepared: kernels.Tables, pages: NDArray[np.int64], out: Vectors) -> None:
        firsts = np.cumsum([0, *(len(codebook) for codebook in self.codebooks[:-1])])
        kernels.add_parts(kernels.lookup_maxsim, prepared, (self.ids, firsts), self.offsets, pages, out)
