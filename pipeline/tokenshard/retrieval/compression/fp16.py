"""Vectors as they are, in half precision: the reference of all other methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, Scorer, Streams, numbers
from tokenshard.retrieval.compression.checks import checked_sample, checked_vectors
from tokenshard.retrieval.exact import Multivectors, Vectors

_ROWS = 1 << 16
"""Vectors multiplied at a time."""


class Fp16(Compressor):
    """2 bytes a component."""

    name: ClassVar[str] = "fp16"
    streams: ClassVar[tuple[str, ...]] = ("vectors",)

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        return numbers(cls.name, arguments, {}, 0)

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        return cls(checked_sample(sample).shape[1])

    def encode(self, pages: Multivectors) -> Encoded:
        halves = checked_vectors(pages, self.dimensions).astype("<f2")
        return Encoded(pages.offsets, streams={"vectors": Streams.rows(halves, pages.offsets)})

    def decode(self, encoded: Encoded) -> Multivectors:
        return Multivectors(self._halves(encoded).astype(np.float32), encoded.offsets)

    def open(self, encoded: Encoded) -> DenseScorer:
        return DenseScorer(self._halves(encoded), encoded.offsets)

    def _halves(self, encoded: Encoded) -> NDArray[np.float16]:
        return encoded.streams["vectors"].as_rows("vectors", "<f2", (self.dimensions,), encoded.offsets)

    def config(self) -> Config:
        return {"dimensions": self.dimensions}

    def arrays(self) -> Arrays:
        return {}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        return cls(config["dimensions"])


@dataclass(frozen=True)
class DenseScorer(Scorer):
    """MaxSim by matrix products over vectors [N, d] of any float type."""

    vectors: NDArray[Any]
    offsets: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes

    def prepare(self, query: Vectors) -> Vectors:
        return query

    def score(self, prepared: Vectors, pages: NDArray[np.int64], out: Vectors) -> None:
        starts, lengths = self.offsets[pages], self.offsets[pages + 1] - self.offsets[pages]
        first, held = 0, 0
        for place in range(len(pages) + 1):
            if place == len(pages) or (place > first and held + lengths[place] > _ROWS):
                mine = slice(first, place)
                ends = np.cumsum(lengths[mine])
                rows = np.repeat(starts[mine] - (ends - lengths[mine]), lengths[mine]) + np.arange(held)
                similar = prepared @ self.vectors[rows].astype(np.float32, copy=False).T
                out[mine] = np.maximum.reduceat(similar, ends - lengths[mine], axis=1).sum(0)
                first, held = place, 0
            held += int(lengths[place]) if place < len(pages) else 0
