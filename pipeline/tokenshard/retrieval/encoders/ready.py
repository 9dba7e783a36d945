"""`vectors`: the encoder of pages whose vectors were made elsewhere, by what is not known. Queries are vectors, too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.retrieval.encoders.base import PageVectors, Query, Vectors
from tokenshard.sources.base import Sample
from tokenshard.spec.documents import EncoderSpec


class ReadyVectors:
    """Samples whose data are vectors [n, d]; without places on a page they are a row of patches."""

    def __init__(self, dimensions: int) -> None:
        self._spec = EncoderSpec(
            name=f"vectors:{dimensions}",
            reads="vectors",
            dimensions=dimensions,
            weights_sha256=hashlib.sha256(b"").hexdigest(),
            weight_licence="none",
        )

    @property
    def spec(self) -> EncoderSpec:
        return self._spec

    def encode_pages(self, pages: Sequence[Sample]) -> list[PageVectors]:
        return [self._page(page.data) for page in pages]

    def _page(self, vectors: NDArray[Any]) -> PageVectors:
        count = len(vectors)
        if vectors.ndim != 2 or vectors.dtype.kind != "f" or (count and vectors.shape[1] != self._spec.dimensions):
            raise InputError(f"vectors of shape {list(vectors.shape)}; expected [n, {self._spec.dimensions}]")
        positions = np.stack([np.zeros(count, np.int32), np.arange(count, dtype=np.int32)], 1)
        found = np.ascontiguousarray(vectors, np.float32).reshape(count, self._spec.dimensions)
        return PageVectors(found, positions, (1, max(1, count)))

    def encode_query(self, query: Query) -> Vectors:
        dimensions = self._spec.dimensions
        if isinstance(query, str) or query.ndim != 2 or query.shape[1] != dimensions or query.dtype.kind != "f":
            raise SpecError(
                f"it is not known what made these vectors; ask with vectors [m, {dimensions}], or compress them with "
                "--encoder"
            )
        return np.ascontiguousarray(query, np.float32)

    def fitted(self, pages: Sequence[Sample]) -> Self:
        return self

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {}

    def with_tensors(self, tensors: dict[str, NDArray[Any]]) -> Self:
        if tensors:
            raise FormatError("ready vectors come without tensors of an encoder")
        return self
