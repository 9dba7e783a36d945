"""A method behind a linear map of queries, which training found; codes are those of the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, Scorer
from tokenshard.retrieval.compression.checks import stored
from tokenshard.retrieval.exact import Multivectors, Vectors

MAP = "query_map"


class QueryMap(Compressor):
    """Queries q [m, d] are scored as q M. In the space of queries a code stands for its vector times M transposed."""

    name: ClassVar[str] = "querymap"

    def __init__(self, method: Compressor, matrix: NDArray[np.float16]) -> None:
        self.method, self._stored = method, matrix
        self._matrix: Vectors = matrix.astype(np.float32)
        self.dimensions, self.alphabets = method.dimensions, method.alphabets
        self.centroids = None if method.centroids is None else method.centroids @ self._matrix.T
        for trait in ("streams", "order_free", "variable_rate"):
            setattr(self, trait, getattr(method, trait))

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        raise SpecError("querymap stands before a codec: querymap|pq16")

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        raise SpecError("querymap stands before a codec: querymap|pq16")

    def encode(self, pages: Multivectors) -> Encoded:
        return self.method.encode(pages)

    def decode(self, encoded: Encoded) -> Multivectors:
        found = self.method.decode(encoded)
        return Multivectors(np.ascontiguousarray(found.vectors @ self._matrix.T), found.offsets)

    def open(self, encoded: Encoded) -> _MappedScorer:
        scorer = self.method.open(encoded)
        return _MappedScorer(scorer, self._matrix, scorer.offsets)

    def config(self) -> Config:
        return {"method": self.method.name, "config": self.method.config()}

    def arrays(self) -> Arrays:
        return {**self.method.arrays(), MAP: self._stored}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        from tokenshard.retrieval.compression.registry import method

        own = {name: array for name, array in arrays.items() if name != MAP}
        inner = method(config["method"]).from_state(_mapping(config["config"]), own)
        if isinstance(inner, QueryMap):
            raise FormatError("codebook: a query map behind another; restore the file")
        return cls(inner, stored(arrays, MAP, np.float16, (inner.dimensions, inner.dimensions)))


@dataclass(frozen=True)
class _MappedScorer(Scorer):
    scorer: Scorer
    matrix: Vectors
    offsets: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        return self.scorer.nbytes

    def prepare(self, query: Vectors) -> Any:
        return self.scorer.prepare(np.ascontiguousarray(query @ self.matrix))

    def score(self, prepared: Any, pages: NDArray[np.int64], out: Vectors) -> None:
        self.scorer.score(prepared, pages, out)


def _mapping(value: Any) -> Config:
    if not isinstance(value, Mapping):
        raise FormatError("codebook: the method behind a query map has no configuration; restore the file")
    return dict(value)
