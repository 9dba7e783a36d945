"""The codes of a dataset's pages, ready to be scored: in memory as far as a budget goes, else read when needed.

Row groups are put together to blocks of about a million vectors, so that much is scored in one go. A block stays in
memory from when all of it was needed, or as many of its pages, one by one, as it has; until then, and beyond the
budget, just the pages that are asked for are read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.codecs.base import sample_sizes
from tokenshard.retrieval.compression.base import Compressor, Encoded, Scorer, Streams
from tokenshard.retrieval.exact import Vectors
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.reader import values
from tokenshard.shards.schema import NUM_TOKENS

BLOCK = 1 << 20
"""Vectors of a block."""
MEMORY = 4 << 30
"""Bytes of codes held in memory unless told otherwise."""
_PASSING = 0.25
"""Share of the memory that is left to a block which is not kept, where not all of them fit."""

Pages = NDArray[np.int64]
"""Numbers of pages, ascending."""


@dataclass
class _Block:
    """Row groups ``groups[0]:groups[1]``, which hold the pages ``pages[0]:pages[1]``."""

    groups: tuple[int, int]
    pages: tuple[int, int]
    scorer: Scorer | None = None
    """of all pages, while the block is in memory"""
    read: int = 0
    """pages that were read one by one"""

    @property
    def count(self) -> int:
        return self.pages[1] - self.pages[0]


class PageCodes:
    """All pages of a dataset, by number. Threads may share one."""

    def __init__(self, dataset: Dataset, compressor: Compressor, memory: int = MEMORY, device: str = "cpu") -> None:
        """``memory``: bytes that laid out codes may take. ``device``: cpu, where codes are scored as they are, or one
        of torch, where they are scored as half-precision vectors. Raises FormatError where shards are damaged.
        """
        self._dataset, self.compressor, self._device, self._memory = dataset, compressor, device, memory
        counts = dataset.table([NUM_TOKENS])[NUM_TOKENS].combine_chunks() if len(dataset) else None
        self.lengths: NDArray[np.int64] = np.zeros(0, np.int64) if counts is None else values(counts).astype(np.int64)
        """vectors of each page"""
        self._lock = threading.Lock()
        self._blocks = self._cut()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Memory that the codes take at the moment."""
        return sum(block.scorer.nbytes for block in self._blocks if block.scorer is not None)

    def scores(
        self, queries: Sequence[Vectors], chosen: Sequence[Pages] | None = None, threads: int = 1
    ) -> list[Vectors]:
        """MaxSim of each query [m, d] with all pages, or with those chosen for it; -inf for pages without vectors."""
        everything = np.arange(len(self))
        wanted = [everything] * len(queries) if chosen is None else chosen
        out = [np.full(len(own), -np.inf, np.float32) for own in wanted]
        tables: list[Any] = [None] * len(queries)
        for block in self._blocks:
            spans = [slice(*np.searchsorted(own, block.pages)) for own in wanted]
            asked = [query for query, span in enumerate(spans) if span.start < span.stop]
            if not asked:
                continue
            scorer, pages = self._opened(block, [wanted[query][spans[query]] for query in asked])
            for query in asked:
                vectors, mine = np.ascontiguousarray(queries[query], np.float32), wanted[query][spans[query]]
                if tables[query] is None and len(vectors):
                    tables[query] = scorer.prepare(vectors)
                out[query][spans[query]] = scorer.scores(vectors, np.searchsorted(pages, mine), threads, tables[query])
        return out

    def encoded(self) -> Iterator[Encoded]:
        """The codes of all pages, a row group at a time."""
        for group in range(self._dataset.num_row_groups):
            yield self.group(group)

    def part(self, pages: Pages) -> Encoded:
        """The codes of some pages."""
        starts = self._dataset.group_starts
        found = [
            self.group(int(group), pages[slice(*np.searchsorted(pages, starts[group : group + 2]))] - starts[group])
            for group in np.unique(np.searchsorted(starts, pages, "right") - 1)
        ]
        return _joined(found) if found else Encoded(np.zeros(1, np.int64))

    def group(self, group: int, rows: Pages | None = None) -> Encoded:
        """The codes of a row group, or of some rows of it."""
        coded = self._dataset.read_group(group, columns=self.compressor.streams)
        sizes = sample_sizes(coded.grids if rows is None else coded.grids[rows])
        table = coded.table if rows is None else coded.table.take(pa.array(rows))
        ids = np.stack(self._dataset.flat_codes(coded, rows)) if self.compressor.alphabets else None
        streams = {name: _streams(table[name].combine_chunks()) for name in self.compressor.streams}
        return Encoded(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), ids, streams)

    # -- blocks -------------------------------------------------------------------------------------------------------

    def _cut(self) -> list[_Block]:
        """Blocks of about :data:`BLOCK` vectors; smaller ones where not all fit into the memory."""
        starts = self._dataset.group_starts
        ends = np.concatenate([[0], np.cumsum(self.lengths)])[starts]
        full = np.flatnonzero(np.diff(ends))
        if not len(full):
            return []
        first = int(full[0])
        size = self._laid_out(self.group(first)).nbytes / int(ends[first + 1] - ends[first])
        fits = size * int(ends[-1]) <= self._memory
        self._room = self._memory if fits else int(self._memory * (1 - _PASSING))
        most = BLOCK if fits else min(BLOCK, int(self._memory * _PASSING / size))
        blocks, group = list[_Block](), 0
        while group < len(starts) - 1:
            last = max(group + 1, int(np.searchsorted(ends, ends[group] + most, "right")) - 1)
            blocks.append(_Block((group, last), (int(starts[group]), int(starts[last]))))
            group = last
        return blocks

    def _opened(self, block: _Block, asked: Sequence[Pages]) -> tuple[Scorer, Pages]:
        """A scorer of pages of a block, among them those that are asked for, and their numbers."""
        everything = np.arange(*block.pages)
        if block.scorer is not None:
            return block.scorer, everything
        pages = asked[0] if len(asked) == 1 else np.unique(np.concatenate(asked))
        block.read += len(pages)
        if block.read < block.count or self.nbytes >= self._room:
            return self._laid_out(self.part(pages)), pages
        with self._lock:
            if block.scorer is not None:  # another thread was faster
                return block.scorer, everything
            scorer = self._laid_out(self.part(everything))
            if self.nbytes + scorer.nbytes <= self._room:
                block.scorer = scorer
            return scorer, everything

    def _laid_out(self, encoded: Encoded) -> Scorer:
        if self._device == "cpu":
            return self.compressor.open(encoded)
        from tokenshard.retrieval.device import DeviceScorer

        return DeviceScorer.of(self.compressor.decode(encoded), self._device)


def _streams(column: pa.Array) -> Streams:
    """A binary column, not copied."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return Streams(np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]], ends - ends[0])


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """Pages of several parts, in order."""
    if len(parts) == 1:
        return parts[0]
    ids = [part.ids for part in parts if part.ids is not None]
    streams = {name: [part.streams[name] for part in parts] for name in parts[0].streams}
    return Encoded(
        _end_to_end([part.offsets for part in parts]),
        np.concatenate(ids, axis=1) if ids else None,
        {
            name: Streams(np.concatenate([s.data for s in own]), _end_to_end([s.offsets for s in own]))
            for name, own in streams.items()
        },
    )


def _end_to_end(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Offsets [n + 1] of several runs of things, one after the other."""
    lengths = np.concatenate([np.diff(own) for own in offsets])
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
