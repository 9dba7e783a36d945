"""The order of an epoch as a pure function: (block sizes, seed, epoch, position) -> (block, row).

A *block* is a row group. The blocks, permuted, are one long sequence of rows; it is cut into *lanes* of equal length,
and position ``p`` of the epoch is the next row of lane ``p % lanes``. Inside a lane, rows are permuted within *windows*
of a few blocks. So a batch draws from all lanes, memory holds one window a lane, and any position is found without
those before it: nothing depends on batch size, ranks, threads or what was read earlier.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError

Longs = NDArray[np.int64]
BLOCKS_PER_LANE = 16
"""Fewest blocks a lane has by default: a block cut by the border of two lanes is read twice."""


@dataclass(frozen=True)
class Shuffle:
    """How far rows are mixed: a batch draws from ``lanes`` places, each mixing the rows of ``window`` blocks."""

    lanes: int = 64
    window: int = 8

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.window < 1:
            raise SpecError(f"lanes and window of a shuffle must be at least 1, not {self.lanes} and {self.window}")

    @classmethod
    def within(cls, blocks: int, held: int) -> Shuffle:
        """The best mix of ``blocks`` blocks with about ``held`` of them in memory at a time.

        A set that fits is one window, so that its order is a uniform permutation.
        """
        if blocks <= held:
            return cls(1, max(1, blocks))
        lanes = max(1, min(64, held, blocks // BLOCKS_PER_LANE))
        return cls(lanes, max(1, held // lanes))


class Window(NamedTuple):
    """Rows ``[first, last)`` of a lane, which are permuted among themselves."""

    lane: int
    number: int
    first: int
    last: int


class EpochOrder:
    """The order of one epoch. ``rows[b]``: rows of block b (int64); ``shuffle`` None: as stored, in one lane.

    Needs memory for the windows in use: 4 bytes a row.
    """

    def __init__(self, rows: Longs, seed: int, epoch: int, shuffle: Shuffle | None) -> None:
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        present = np.flatnonzero(rows)
        self.blocks: Longs = present if shuffle is None else self._draw(0, 0).permutation(present)
        """numbers of the blocks that have rows, in the order of the sequence"""
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows[self.blocks], dtype=np.int64)])
        self.length = int(self._starts[-1])
        self.lanes = 1 if shuffle is None else max(1, min(shuffle.lanes, self.length))
        sizes = (self.length - np.arange(self.lanes) + self.lanes - 1) // self.lanes
        self._lanes = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self._windows = [self._cut(lane) for lane in range(self.lanes)]
        self._permutations: OrderedDict[tuple[int, int], NDArray[np.uint32]] = OrderedDict()

    def __len__(self) -> int:
        return self.length

    def windows(
        self, first: int, size: int, count: int = 1, rank: int = 0, world: int = 1, shift: int = 0
    ) -> Iterator[Window]:
        """The windows that hold what :meth:`rows` gives, by lane (some may hold only what other ranks get)."""
        last = first + size * count
        for lane in self._lanes_of(first, size, count, (rank, world, shift)):
            start, stop = (max(0, at - lane + self.lanes - 1) // self.lanes for at in (first, last))
            if start < stop:
                cuts = self._windows[lane]
                low, high = np.searchsorted(cuts, (start, stop - 1), "right") - 1
                for number in range(low, high + 1):
                    yield Window(lane, number, int(cuts[number]), int(cuts[number + 1]))

    def _lanes_of(self, first: int, size: int, count: int, part: tuple[int, int, int]) -> Iterable[int]:
        """Lanes that a rank reads for some batches."""
        if first % self.lanes or size % self.lanes:
            batches = [batch_positions(first + n * size, size, self.lanes, *part) for n in range(count)]
            return np.unique(np.concatenate(batches) % self.lanes).tolist()  # type: ignore[no-any-return]
        each = size // self.lanes
        start, stop = share(size, *part)
        return range(start // each, -(-stop // each))

    def window_blocks(self, window: Window) -> Longs:
        """Numbers of the blocks that hold rows of a window."""
        first, last = self._lanes[window.lane] + window.first, self._lanes[window.lane] + window.last
        start = np.searchsorted(self._starts, first, "right") - 1
        return self.blocks[start : np.searchsorted(self._starts, last, "left")]

    def locate(self, positions: Longs) -> tuple[Longs, Longs]:
        """Block number and row inside the block of each position of the epoch (int64, 0 <= position < length)."""
        sequence = np.empty(len(positions), np.int64)
        for lane, places in _by_lane(positions, self.lanes):
            sequence[places] = self._permuted(lane, positions[places] // self.lanes)
        return self._blocks_of(sequence)

    def rows(
        self, first: int, size: int, count: int, rank: int = 0, world: int = 1, shift: int = 0
    ) -> tuple[Longs, Longs]:
        """What a rank gets of ``count`` global batches of ``size`` positions from ``first`` on: see :meth:`locate`.

        The batches follow each other; within one, rows are in the order of :func:`batch_positions`.
        """
        if first % self.lanes or size % self.lanes:
            batches = [batch_positions(first + n * size, size, self.lanes, rank, world, shift) for n in range(count)]
            return self.locate(np.concatenate(batches))
        each = size // self.lanes  # rows of a lane in a batch: the same run of every lane
        start, stop = share(size, rank, world, shift)
        lanes = range(start // each, -(-stop // each))
        sequence = np.empty((count, len(lanes), each), np.int64)
        row = first // self.lanes
        for place, lane in enumerate(lanes):
            sequence[:, place] = self._run(lane, row, row + count * each).reshape(count, each)
        start -= lanes.start * each
        stop -= lanes.start * each
        return self._blocks_of(sequence.reshape(count, -1)[:, start:stop].ravel())

    def _blocks_of(self, sequence: Longs) -> tuple[Longs, Longs]:
        found = np.searchsorted(self._starts, sequence, "right") - 1
        rows: Longs = sequence - self._starts[found]
        return self.blocks[found], rows

    def _run(self, lane: int, first: int, last: int) -> Longs:
        """Places in the sequence of rows ``[first, last)`` of a lane."""
        cuts, origin = self._windows[lane], self._lanes[lane]
        if self._shuffle is None:
            return np.arange(origin + first, origin + last)
        number = int(np.searchsorted(cuts, first, "right")) - 1
        parts = []
        while first < last:
            stop = min(last, int(cuts[number + 1]))
            permutation = self._permutation(lane, number)[first - int(cuts[number]) : stop - int(cuts[number])]
            parts.append(permutation + (origin + cuts[number]))
            first, number = stop, number + 1
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _permuted(self, lane: int, rows: Longs) -> Longs:
        """Places in the sequence of any rows of a lane."""
        origin = int(self._lanes[lane])
        if self._shuffle is None:
            return rows + origin
        cuts = self._windows[lane]
        numbers = np.searchsorted(cuts, rows, "right") - 1
        out = np.empty_like(rows)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            out[mine] = self._permutation(lane, number)[rows[mine] - cuts[number]] + (origin + cuts[number])
        return out

    def _permutation(self, lane: int, number: int) -> NDArray[np.uint32]:
        found = self._permutations.get((lane, number))
        if found is None:
            size = int(self._windows[lane][number + 1] - self._windows[lane][number])
            found = self._draw(1 + lane, number).permutation(np.arange(size, dtype=np.uint32))
            self._permutations[lane, number] = found
            if len(self._permutations) > 2 * self.lanes:
                self._permutations.popitem(last=False)
        else:
            self._permutations.move_to_end((lane, number))
        return found

    def _cut(self, lane: int) -> Longs:
        """Where the windows of a lane begin, and its end: borders of blocks, as rows of the lane.

        Windows grow from one block, so that the first batch comes soon, and end at different times in different lanes.
        """
        first, last = self._lanes[lane], self._lanes[lane + 1]
        inner = self._starts[np.searchsorted(self._starts, first, "right") : np.searchsorted(self._starts, last)]
        borders = np.concatenate([[first], inner, [last]]) - first
        last_border = len(borders) - 1
        size = self._shuffle.window if self._shuffle is not None else 1
        cuts = [0]
        if self.lanes > 1 or size < last_border:
            cuts += [1, *range(2 + lane % size, last_border, size)] if size > 1 else range(1, last_border)
        found: Longs = borders[[*(cut for cut in cuts if cut < last_border), last_border]]
        return found

    def _draw(self, stream: int, number: int) -> np.random.Generator:
        """The random numbers of one use: a Philox counter at a place of its own (Salmon et al., SC 2011)."""
        key = np.array([self._seed, self._epoch], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, number, stream]))


def share(size: int, rank: int, world: int, shift: int = 0) -> tuple[int, int]:
    """Rows [start, stop) of a batch of ``size`` that a rank gets: runs of equal length, but for one row.

    Ranks from ``shift`` on (and round) get the odd rows. Of several batches that share a step, each begins where the
    one before it left off, and all ranks get equally much in all.
    """
    each, odd = divmod(size, world)
    longer = [(number - shift) % world < odd for number in range(rank + 1)]
    start = rank * each + sum(longer[:rank])
    return start, start + each + longer[rank]


def batch_positions(first: int, size: int, lanes: int, rank: int = 0, world: int = 1, shift: int = 0) -> Longs:
    """Positions that a rank gets of the global batch ``[first, first + size)``.

    The batch is ordered by lane and cut into ``world`` runs, so that a rank reads about ``1 / world`` of the lanes.
    """
    positions = np.arange(first, first + size, dtype=np.int64)
    if lanes > 1:
        positions = positions[np.argsort(positions % lanes, kind="stable")]
    return positions[slice(*share(size, rank, world, shift))]


def windows_change(
    order: EpochOrder, windows: Iterator[Window], last: dict[int, Window]
) -> tuple[list[int], list[int]]:
    """Blocks that come and blocks that go with these windows; ``last``: the last window of each lane, brought on."""
    begins: list[int] = []
    ends: list[int] = []
    for window in windows:
        before = last.get(window.lane)
        if before != window:
            begins += order.window_blocks(window).tolist()
            ends += order.window_blocks(before).tolist() if before is not None else []
            last[window.lane] = window
    return begins, ends


def _by_lane(positions: Longs, lanes: int) -> Iterator[tuple[int, Longs]]:
    """(lane, places in ``positions``) for every lane that occurs."""
    if lanes == 1:
        if len(positions):
            yield 0, np.arange(len(positions))
        return
    lane = positions % lanes
    order = np.argsort(lane, kind="stable")
    found, first = np.unique(lane[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, first[1:]), strict=True) if len(order) else ()
