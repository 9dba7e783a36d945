"""Inverted lists: for each coarse centroid the pages with a vector near it.

A query vector looks at the lists of its nearest centroids. A page gets, for each query vector, the similarity of the
best centroid that leads to it; where none does, that of the first centroid not looked at stands in, the most that it
can have missed (Santhanam et al., PLAID, arXiv:2205.09707; Scheerer et al., WARP, arXiv:2501.17788).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self

import numpy as np
import zstandard
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.retrieval.compression import kernels as shared
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.exact import Vectors
from tokenshard.retrieval.first_stages import kernels
from tokenshard.retrieval.first_stages.base import Arrays, FirstStage, Numbered, Part

_MAX_ENTRIES = 1 << 31


class InvertedLists(FirstStage):
    """``starts`` int64 [K + 1], ``pages`` int32: those of list k, ascending, are ``pages[starts[k]:starts[k + 1]]``."""

    name: ClassVar[str] = "lists"

    def __init__(self, centroids: Vectors, starts: NDArray[np.int64], pages: NDArray[np.int32], count: int) -> None:
        self._centroids, self._starts, self._pages, self._count = centroids, starts, pages, count

    @classmethod
    def build(cls, compressor: Compressor, centroids: Vectors | None, pages: Iterable[Numbered]) -> tuple[Arrays, int]:
        near = compressor.centroids if centroids is None else centroids
        assert near is not None
        seen = np.full(len(near), -1, np.int32)
        ids, numbers = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        for part in pages:
            encoded = part.encoded
            if centroids is None:
                assert encoded.ids is not None
                own = encoded.ids[0]
            else:
                own = shared.nearest(compressor.decode(encoded).vectors, centroids)
            found, names = np.empty(len(own), np.int32), np.empty(len(own), np.int32)
            used = kernels.entries(own, encoded.offsets, part.pages.astype(np.int32), seen, found, names)
            ids.append(found[:used].copy())
            numbers.append(names[:used].copy())
        lists, named = np.concatenate(ids), np.concatenate(numbers)
        order = np.argsort(lists, kind="stable")
        counts = np.bincount(lists, minlength=len(near)).astype(np.int32)
        steps = np.diff(named[order], prepend=np.int32(0))
        packed = zstandard.compress(np.ascontiguousarray(steps, "<i4").tobytes(), 9)
        return {"counts": counts, "steps": np.frombuffer(packed, np.uint8)}, len(steps)

    @classmethod
    def open(cls, compressor: Compressor, centroids: Vectors | None, parts: Sequence[Part], count: int) -> Self:
        near = compressor.centroids if centroids is None else centroids
        if near is None:
            raise FormatError("inverted lists without centroids; build the index again")
        opened = [_unpacked(part, len(near)) for part in parts]
        totals = np.zeros(len(near), np.int64)
        for starts, _, _ in opened:
            totals += np.diff(starts)
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(totals)])
        pages, ends = np.empty(int(first[-1]), np.int32), first[:-1].copy()
        for starts, own, numbers in opened:
            kernels.merge(starts, own, numbers, ends, pages)
        if (ends != first[1:]).any():  # some pages are no longer there: close up
            rows = np.repeat(first[:-1], ends - first[:-1])
            lengths = ends - first[:-1]
            inside = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            pages = pages[rows + inside]
            first = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(near, first, pages, count)

    @property
    def nbytes(self) -> int:
        return self._starts.nbytes + self._pages.nbytes + self._centroids.nbytes

    def estimates(self, query: Vectors, probes: int, threads: int = 1) -> Vectors:
        similar = query @ self._centroids.T
        return collected(similar, probes, self._starts, self._pages, self._count, threads)


def collected(
    similar: Vectors, probes: int, starts: NDArray[np.int64], pages: NDArray[np.int32], count: int, threads: int
) -> Vectors:
    """Estimates [P] from the similarity of each query vector and each list [m, K]."""
    probes = min(probes, similar.shape[1])
    best = np.argpartition(-similar, min(probes, similar.shape[1] - 1), 1)[:, : probes + 1]
    values = np.take_along_axis(similar, best, 1)
    order = np.argsort(-values, 1, kind="stable")
    best, values = np.take_along_axis(best, order, 1), np.take_along_axis(values, order, 1)
    # Of the first list that is not looked at; where all are, no page is missed but by being in none.
    missed = values[:, probes] if values.shape[1] > probes else values[:, -1]
    return gathered(best[:, :probes], values[:, :probes], missed, starts, pages, count, threads)


def gathered(
    lists: NDArray[np.int64], values: Vectors, missed: Vectors, starts: NDArray[np.int64], pages: NDArray[np.int32],
    count: int, threads: int,
) -> Vectors:  # fmt: skip
    """Estimates [P]: the sum over query vectors of the largest value of the lists a page is in, or what it missed.

    ``lists`` and ``values`` [m, n], by descending value. A page in no list has -inf.
    """
    gains = np.ascontiguousarray(values - missed[:, None], np.float32)

    def part(rows: NDArray[np.int64]) -> tuple[Vectors, NDArray[np.int32]]:
        sums, stamps = np.zeros(count, np.float32), np.zeros(count, np.int32)
        kernels.accumulate(starts, pages, np.ascontiguousarray(lists[rows]), gains[rows], stamps, sums)
        return sums, stamps

    rows = np.array_split(np.arange(len(lists)), min(threads, len(lists)))
    if len(rows) == 1:
        parts = [part(rows[0])]
    else:
        with ThreadPoolExecutor(len(rows)) as pool:
            parts = list(pool.map(part, rows))
    total, seen = parts[0]
    for sums, stamps in parts[1:]:
        total += sums
        seen |= stamps
    total[seen == 0] = -np.inf
    total += np.float32(missed.sum())
    return total


def _unpacked(part: Part, count: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Starts, pages and numbers of a part. Raises FormatError where it is damaged."""
    counts, packed = part.arrays["counts"], part.arrays["steps"].tobytes()
    if counts.dtype != np.int32 or counts.shape != (count,) or (counts < 0).any():
        raise FormatError("lists of other centroids; build the index again")
    entries = int(counts.sum(dtype=np.int64))
    size = zstandard.get_frame_parameters(packed).content_size
    if entries != part.entries or entries >= _MAX_ENTRIES or size != 4 * entries:
        raise FormatError("lists of another length; build the index again")
    steps: NDArray[Any] = np.frombuffer(zstandard.ZstdDecompressor().decompress(packed), "<i4")
    pages = np.cumsum(steps, dtype=np.int32)
    if len(pages) and not 0 <= pages.min() <= pages.max() < len(part.numbers):
        raise FormatError("a page outside of its part; build the index again")
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]), pages, part.numbers
