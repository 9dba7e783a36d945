"""Late interaction without compression: what every compressed search is measured against.

A query is m vectors, a page n vectors. MaxSim (Khattab and Zaharia, ColBERT, 2020) is the sum over the query's vectors
of the largest inner product with a vector of the page. Nothing is padded here without a mask: a zero vector in place of
a missing one would win wherever all similarities are negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float32]

_BLOCK = 1 << 23
"""Similarities computed at a time (float32)."""


@dataclass(frozen=True)
class Multivectors:
    """Vectors of many pages (or queries), back to back.

    ``vectors``: float32 [N, d]. ``offsets``: int64 [P + 1], ascending from 0 to N; page p has the rows
    ``offsets[p]:offsets[p + 1]``, which may be none. Raises FormatError where these do not fit each other.
    """

    vectors: Vectors
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        ends = self.offsets
        if self.vectors.ndim != 2 or ends.ndim != 1 or not len(ends):
            raise FormatError(f"multi-vectors of shape {self.vectors.shape} with offsets of shape {ends.shape}")
        if ends[0] != 0 or ends[-1] != len(self.vectors) or (np.diff(ends) < 0).any():
            raise FormatError(f"offsets do not ascend from 0 to {len(self.vectors)}, the number of vectors")

    @classmethod
    def of(cls, pages: Sequence[Vectors], dimensions: int | None = None) -> Multivectors:
        """The vectors [n, d] of some pages. ``dimensions``: d, where there may be no page at all."""
        offsets = np.zeros(len(pages) + 1, np.int64)
        np.cumsum([len(page) for page in pages], out=offsets[1:])
        vectors = np.concatenate(pages) if pages else np.zeros((0, dimensions or 0))
        return cls(np.ascontiguousarray(vectors, np.float32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, page: int) -> Vectors:
        return self.vectors[self.offsets[page] : self.offsets[page + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Vectors of each page [P]."""
        return np.diff(self.offsets)

    def part(self, first: int, last: int) -> Multivectors:
        """The pages ``first:last``, as a view."""
        start, end = self.offsets[first], self.offsets[last]
        return Multivectors(self.vectors[start:end], self.offsets[first : last + 1] - start)


def maxsim(queries: Multivectors, pages: Multivectors) -> NDArray[np.float32]:
    """Scores [Q, P] of every page for every query. A page without vectors scores -inf, a query without them 0.

    Memory beside the result is bounded; a page or a query is never split.
    """
    scores = np.full((len(queries), len(pages)), -np.inf, np.float32)
    for q in _blocks(queries.lengths, max(1, _BLOCK >> 12)):
        asked = queries.part(q.start, q.stop)
        for p in _blocks(pages.lengths, max(1, _BLOCK // max(1, len(asked.vectors)))):
            shown = pages.part(p.start, p.stop)
            full = np.flatnonzero(shown.lengths)
            if not len(full):
                continue
            best = np.maximum.reduceat(asked.vectors @ shown.vectors.T, shown.offsets[full], axis=1)
            scores[q, p.start + full] = _sums(best, asked)
    scores[queries.lengths == 0] = 0
    return scores


def padded_maxsim(
    queries: torch.Tensor, query_mask: torch.Tensor, pages: torch.Tensor, page_mask: torch.Tensor
) -> torch.Tensor:
    """Scores [Q, P] of padded batches on their device: queries [Q, m, d], pages [P, n, d], masks bool [Q, m], [P, n].

    Where a mask is False, the vector does not exist, whatever is in its place. A page without vectors scores -inf.
    """
    similar = queries.flatten(0, 1) @ pages.flatten(0, 1).T
    similar = similar.view(*query_mask.shape, *page_mask.shape)
    best = similar.masked_fill(~page_mask, float("-inf")).amax(-1)  # [Q, m, P]
    return best.masked_fill(~query_mask[:, :, None], 0).sum(1)


def ranking(scores: NDArray[np.float32], top: int) -> NDArray[np.int64]:
    """Numbers of the ``top`` best pages for each row of scores [..., P], best first; equal scores by page number."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    return order[..., :top].astype(np.int64, copy=False)


def _sums(best: NDArray[np.float32], asked: Multivectors) -> NDArray[np.float32]:
    """[vectors of all queries, pages] -> [queries, pages]."""
    sums = np.zeros((len(asked), best.shape[1]), np.float32)
    full = np.flatnonzero(asked.lengths)
    if len(full):
        sums[full] = np.add.reduceat(best, asked.offsets[full], axis=0)
    return sums


def _blocks(lengths: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Neighbouring pages of at most ``most`` vectors together (or one page)."""
    first, held = 0, 0
    for place, length in enumerate(lengths.tolist()):
        if place > first and held + length > most:
            yield slice(first, place)
            first, held = place, 0
        held += length
    if len(lengths):
        yield slice(first, len(lengths))
