"""Fewer vectors before they are coded: pruning by saliency (HPC-ColPali, arXiv:2506.21601) and Ward pooling.

Both lose details that exact questions ask for, so neither happens unless a codec string names it. Which vectors of a
page went where stays known: positions and heat maps follow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import InputError, SpecError
from tokenshard.retrieval.exact import Multivectors, Vectors

Labels = NDArray[np.int64]
"""[N]: the row of the reduced vectors that each vector became a part of, -1 where it was dropped."""


Source = Literal["attention", "idf", "random"]
_SOURCES: dict[str, Source] = {"attention": "attention", "idf": "idf", "random": "random"}


class Reduction(ABC):
    """A step from the vectors of pages to fewer."""

    @abstractmethod
    def apply(self, pages: Multivectors, saliency: Vectors | None) -> tuple[Multivectors, Labels]:
        """Fewer vectors of the same pages, at least one of each page that had any; no page depends on another."""


@dataclass(frozen=True)
class Prune(Reduction):
    """``prune:BY,SHARE``: the vectors of the largest saliency, that share of each page.

    BY says what makes a vector salient: `attention` of the encoder, `idf` of its token (both given with the pages), or
    `random`, the control that every result should be shown beside.
    """

    by: Source
    share: float

    def apply(self, pages: Multivectors, saliency: Vectors | None) -> tuple[Multivectors, Labels]:
        if self.by == "random":
            saliency = _noise(pages.vectors)
        if saliency is None or saliency.shape != (len(pages.vectors),):
            raise InputError(f"pruning by {self.by} needs a value a vector; this encoder gives none")
        of_page = np.repeat(np.arange(len(pages)), pages.lengths)
        order = np.lexsort((-saliency, of_page))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(pages.offsets[:-1], pages.lengths)
        keep = np.maximum(np.ceil(self.share * pages.lengths).astype(np.int64), pages.lengths > 0)
        kept = rank < np.repeat(keep, pages.lengths)
        labels = np.where(kept, np.cumsum(kept) - 1, -1)
        return Multivectors(pages.vectors[kept], np.concatenate([[0], np.cumsum(keep)])), labels


@dataclass(frozen=True)
class Pool(Reduction):
    """``pool:FACTOR``: mean vectors of clusters by Ward's method, one for FACTOR vectors, scaled to length 1."""

    factor: int

    def apply(self, pages: Multivectors, saliency: Vectors | None) -> tuple[Multivectors, Labels]:
        from scipy.cluster.hierarchy import fcluster, linkage

        pooled: list[Vectors] = []
        labels, found = np.empty(len(pages.vectors), np.int64), 0
        for page in range(len(pages)):
            vectors = pages[page]
            count = max(len(vectors) // self.factor, 1)
            own = np.arange(len(vectors))
            if len(vectors) > 1 and count < len(vectors):
                raw = fcluster(linkage(vectors.astype(np.float64), "ward"), count, "maxclust")
                own = _by_first_member(raw)
            sums = np.zeros((int(own.max(initial=-1)) + 1, vectors.shape[1]))
            np.add.at(sums, own, vectors)
            sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
            labels[pages.offsets[page] : pages.offsets[page + 1]] = found + own
            pooled.append(sums.astype(np.float32))
            found += len(sums)
        return Multivectors.of(pooled, pages.vectors.shape[1]), labels


def parse_reduction(text: str) -> Reduction:
    """``prune:BY,SHARE`` or ``pool:FACTOR``. Raises SpecError."""
    name, _, rest = text.strip().partition(":")
    parts = [part.strip() for part in rest.split(",")]
    try:
        if name == "pool" and len(parts) == 1 and int(parts[0]) >= 2:
            return Pool(int(parts[0]))
        if name == "prune" and len(parts) == 2 and parts[0] in _SOURCES and 0 < float(parts[1]) <= 1:
            return Prune(_SOURCES[parts[0]], float(parts[1]))
    except ValueError:
        pass
    raise SpecError(f"{text!r} is no reduction; write prune:attention,0.6, prune:idf,0.6, prune:random,0.6 or pool:2")


def _by_first_member(clusters: NDArray[np.int32]) -> Labels:
    """The same clusters, numbered from 0 in the order in which they first appear."""
    _, first, own = np.unique(clusters, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered: Labels = rank[own]
    return numbered


def _noise(vectors: Vectors) -> Vectors:
    """A number for each vector that depends on nothing but its bytes: the same in whichever page, job or order."""
    words = np.ascontiguousarray(vectors, np.float32).view(np.uint32).astype(np.uint64)
    mixed = np.zeros(len(words), np.uint64)
    for column in words.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(40)).astype(np.float32)
