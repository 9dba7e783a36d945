"""Sign bits of all vectors: every page is scored, by the signs that it has in common with the query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.retrieval.compression.base import Compressor, Encoded, Streams
from tokenshard.retrieval.compression.bits import Bits, HammingScorer
from tokenshard.retrieval.exact import Vectors
from tokenshard.retrieval.first_stages.base import Arrays, FirstStage, Numbered, Part


class Signs(FirstStage):
    """``counts`` int32 and ``bits``, a bit a dimension, of each page of a part."""

    name: ClassVar[str] = "signs"

    def __init__(self, scorer: HammingScorer, numbers: NDArray[np.int64], count: int) -> None:
        self._scorer, self._numbers, self._count = scorer, numbers, count
        self._here = np.flatnonzero(numbers >= 0)

    @classmethod
    def build(cls, compressor: Compressor, centroids: Vectors | None, pages: Iterable[Numbered]) -> tuple[Arrays, int]:
        coder, width = Bits(compressor.dimensions), -(-compressor.dimensions // 8)
        counts, rows, names = [np.zeros(0, np.int32)], [np.zeros(0, np.uint8)], [np.zeros(0, np.int64)]
        for part in pages:
            found = coder.encode(compressor.decode(part.encoded)).streams["bits"]
            rows.append(found.data)
            counts.append(part.encoded.lengths.astype(np.int32))
            names.append(part.pages)
        lengths, bits = np.concatenate(counts), np.concatenate(rows).reshape(-1, width)
        return {"pages": np.concatenate(names), "counts": lengths, "bits": bits}, len(bits)

    @classmethod
    def open(cls, compressor: Compressor, centroids: Vectors | None, parts: Sequence[Part], count: int) -> Self:
        coder, width = Bits(compressor.dimensions), -(-compressor.dimensions // 8)
        for part in parts:
            check_pages(part, part.arrays["bits"], np.uint8, width)
        lengths = np.concatenate([np.zeros(0, np.int32), *(part.arrays["counts"] for part in parts)])
        numbers = np.concatenate([np.zeros(0, np.int64), *(part.numbers[part.arrays["pages"]] for part in parts)])
        bits = np.concatenate([np.zeros((0, width), np.uint8), *(part.arrays["bits"] for part in parts)])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        encoded = Encoded(offsets, streams={"bits": Streams.rows(bits, offsets)})
        return cls(coder.open_hamming(encoded), numbers, count)

    @property
    def nbytes(self) -> int:
        return self._scorer.nbytes

    def estimates(self, query: Vectors, probes: int, threads: int = 1) -> Vectors:
        found = np.full(self._count, -np.inf, np.float32)
        found[self._numbers[self._here]] = self._scorer.scores(query, self._here, threads)
        return found


def check_pages(part: Part, rows: NDArray[np.generic], kind: type, width: int) -> None:
    """Raises FormatError unless ``pages``, ``counts`` and the rows of all pages of a part fit each other."""
    pages, counts = part.arrays["pages"], part.arrays["counts"]
    fits = pages.dtype == np.int64 and counts.dtype == np.int32 and pages.shape == counts.shape and pages.ndim == 1
    if not fits or rows.dtype != kind or rows.shape != (part.entries, width):
        raise FormatError("arrays of another type or size; build the index again")
    if (counts < 0).any() or int(counts.sum(dtype=np.int64)) != part.entries:
        raise FormatError("vectors of another number; build the index again")
    if len(pages) and not 0 <= pages.min() <= pages.max() < len(part.numbers):
        raise FormatError("a page outside of its part; build the index again")
