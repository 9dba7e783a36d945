"""`vectors`: the encoder of pages whose vectors were made elsewhere, by what is not known. Queries are vectors, too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.retrieval.encoders.base import PageVectors, Query, Vectors
from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.vectors.open import open_vector_source
from tokenshard.spec.documents import EncoderSpec, VectorSourceSpec


def read_query_vectors(path: str, storage: Mapping[str, Any] | None = None) -> dict[str, Vectors]:
    """Vectors [m, d] of queries by their ids, from `.npy` and `.safetensors` files, as those of pages are read.

    Raises SpecError where there are none, or an array holds no vectors.
    """
    source = open_vector_source(VectorSourceSpec(path=path, form="arrays"), storage)
    found: dict[str, Vectors] = {}
    for plan in source.plan():
        for thunk in source.read(pa.Table.from_batches([plan])):
            item = thunk()
            if isinstance(item, Reject):
                raise SpecError(f"{path}: {item.message}")
            found[item.key] = item.data
    return found


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
        if not np.isfinite(vectors).all():
            raise InputError("vectors that are not finite")
        positions = np.stack([np.zeros(count, np.int32), np.arange(count, dtype=np.int32)], 1)
        found = np.ascontiguousarray(vectors, np.float32).reshape(count, self._spec.dimensions)
        return PageVectors(found, positions, (1, max(1, count)))

    def encode_query(self, query: Query) -> Vectors:
        raise SpecError(
            f"it is not known what made these vectors; ask with vectors [m, {self._spec.dimensions}], or compress them "
            "with --encoder"
        )

    def fitted(self, pages: Sequence[Sample]) -> Self:
        return self

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {}

    def with_tensors(self, tensors: dict[str, NDArray[Any]]) -> Self:
        if tensors:
            raise FormatError("ready vectors come without tensors of an encoder")
        return self
