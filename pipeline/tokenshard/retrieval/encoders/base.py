"""The contract of page encoders: pages and queries -> vectors of one space, for late interaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.patches import Patches
from tokenshard.sources.base import Sample
from tokenshard.spec.documents import EncoderSpec

Vectors = NDArray[np.float32]
Query = str | NDArray[Any]
"""Text, an image (uint8 [height, width, 3]), or vectors (float [m, d])."""


@dataclass(frozen=True)
class PageVectors:
    """What an encoder makes of a page. Padding, prompt and other special tokens are not among the vectors."""

    vectors: Vectors
    """[n, d], of length 1; n may be 0"""
    positions: NDArray[np.int32]
    """[n, 2]: row and column of the patch that each vector stands for"""
    grid: tuple[int, int]
    """patches of the page: rows, columns"""
    saliency: NDArray[np.float32] | None = None
    """[n]: attention that each vector received, in even shares (1 on average); None where the encoder has none"""
    left: Patches | None = None
    """where these are what is left of the vectors that an encoder had made: what became of each"""
    rarity: NDArray[np.float32] | None = None
    """[n]: inverse document frequency of each vector's token; None unless the encoder counts tokens"""

    @property
    def patches(self) -> Patches:
        """Where the vectors are on their page."""
        if self.left is not None:
            return self.left
        cells = self.positions[:, 0].astype(np.int64) * self.grid[1] + self.positions[:, 1]
        return Patches.whole(self.grid, cells, self.saliency)


class PageEncoder(Protocol):
    """Encodes pages and queries.

    On CPUs in fp32 the vectors of a page depend on the page alone, bit for bit: not on those it is encoded together
    with. Other devices and modes promise that only up to rounding.
    """

    @property
    def spec(self) -> EncoderSpec: ...

    def encode_pages(self, pages: Sequence[Sample]) -> list[PageVectors]:
        """Vectors of each page. Raises InputError where a page lacks what the encoder reads."""
        ...

    def encode_query(self, query: Query) -> Vectors:
        """Vectors [m, d] of a query. Raises SpecError where the encoder has none for this kind of query."""
        ...

    def fitted(self, pages: Sequence[Sample]) -> Self:
        """The encoder with whatever it takes from a sample of the pages; itself where it takes nothing."""
        ...

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What was taken, by name; empty where nothing is."""
        ...

    def with_tensors(self, tensors: dict[str, NDArray[Any]]) -> Self:
        """The encoder with what was taken earlier. Raises FormatError where it does not fit."""
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """An encoder whose vectors stand for tokens of a vocabulary."""

    def counting(self, pages: Sequence[Sample]) -> PageEncoder:
        """The encoder, giving the rarity of tokens among these pages with the vectors of any page."""
        ...


def query_vectors(encoder: PageEncoder, query: Query) -> Vectors:
    """Vectors [m, d] of a query, which may be some already. Raises SpecError where it cannot be one."""
    if isinstance(query, str) or query.dtype.kind != "f":
        return encoder.encode_query(query)
    if query.ndim != 2 or query.shape[1] != encoder.spec.dimensions or not np.isfinite(query).all():
        raise SpecError(f"a query of shape {list(query.shape)}; expected finite vectors [m, {encoder.spec.dimensions}]")
    return np.ascontiguousarray(query, np.float32)


def normalized(vectors: NDArray[Any]) -> Vectors:
    """Vectors [n, d] of length 1 (float32)."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), np.float32)
