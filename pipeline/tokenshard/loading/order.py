"""The order of an epoch as a pure function: (block sizes, seed, epoch, position) -> (block, row).

A *block* is a row group. The blocks, permuted, are one long sequence of rows; it is cut into *lanes* of equal length,
and position ``p`` of the epoch is the next row of lane ``p % lanes``. Inside a lane, rows are permuted within *windows*
of a few blocks. So a batch draws from all lanes, memory holds one window a lane, and any position is found without
those before it: nothing depends on batch size, ranks, threads or what was read earlier.

Where the first batch would need many blocks, an epoch may have an *opening*: its first positions are rows of a few
blocks only, and what is left of those blocks takes part in the rest, the body. Each is dealt out over lanes of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError

Longs = NDArray[np.int64]
Draw = Callable[[int, int], np.random.Generator]
"""(stream, number) -> random numbers of their own"""
BLOCKS_PER_LANE = 16
"""Fewest blocks a lane has by default: a block cut by the border of two lanes is read twice."""
OPENING = 8
"""Blocks of an opening, by default."""
OPENING_SHARE = 16
"""An opening takes one row in so many of its blocks, where a window holds all blocks: they are in memory all along."""
_OPENING_STREAM = 1 << 60


@dataclass(frozen=True)
class Shuffle:
    """How far rows are mixed: a batch draws from ``lanes`` places, each mixing the rows of ``window`` blocks.

    A block is a row group. The first samples of an epoch come from ``opening`` blocks only (0: from all that a batch
    draws from). Raises SpecError for values below 1 (of ``opening`` below 0).
    """

    lanes: int = 64
    window: int = 8
    opening: int = 0

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.window < 1:
            raise SpecError(f"lanes and window of a shuffle must be at least 1, not {self.lanes} and {self.window}")
        if self.opening < 0:
            raise SpecError(f"the opening of a shuffle must be at least 0 row groups, not {self.opening}")

    @classmethod
    def within(cls, blocks: int, held: int) -> Shuffle:
        """The best mix of ``blocks`` blocks with about ``held`` of them in memory at a time.

        A set that fits is one window, so that its order is a uniform permutation but for the opening.
        """
        if blocks <= held:
            return cls(1, max(1, blocks), OPENING if blocks >= 2 * OPENING else 0)
        lanes = max(1, min(64, held, blocks // BLOCKS_PER_LANE))
        return cls(lanes, max(1, held // lanes), OPENING if lanes >= 2 * OPENING else 0)


class Window(NamedTuple):
    """Rows ``[first, last)`` of a lane, which are permuted among themselves."""

    stretch: int
    """0: of the opening, 1: of the body"""
    lane: int
    number: int
    first: int
    last: int


class Stretch:
    """Positions that are dealt out over lanes: the rows of some blocks, in windows. ``window`` None: as stored.

    Needs memory for the windows in use: 4 bytes a row.
    """

    def __init__(self, number: int, blocks: Longs, rows: Longs, lanes: int, window: int | None, draw: Draw) -> None:
        """``rows[i]``: rows of ``blocks[i]``."""
        self.number, self.blocks, self._window, self._draw = number, blocks, window, draw
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows, dtype=np.int64)])
        self.length = int(self._starts[-1])
        self.lanes = max(1, min(lanes, self.length))
        sizes = (self.length - np.arange(self.lanes) + self.lanes - 1) // self.lanes
        self._lanes = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self._windows = [self._cut(lane) for lane in range(self.lanes)]
        self._permutations: OrderedDict[tuple[int, int], NDArray[np.uint32]] = OrderedDict()

    def windows(self, first: int, last: int, lanes: Iterable[int]) -> Iterator[Window]:
        """The windows that hold the rows of these lanes among positions ``[first, last)``."""
        for lane in lanes:
            start, stop = (max(0, at - lane + self.lanes - 1) // self.lanes for at in (first, last))
            if start < stop:
                cuts = self._windows[lane]
                low, high = np.searchsorted(cuts, (start, stop - 1), "right") - 1
                for number in range(low, high + 1):
                    yield Window(self.number, lane, number, int(cuts[number]), int(cuts[number + 1]))

    def window_blocks(self, window: Window) -> Longs:
        """Numbers of the blocks that hold rows of a window."""
        first, last = self._lanes[window.lane] + window.first, self._lanes[window.lane] + window.last
        start = np.searchsorted(self._starts, first, "right") - 1
        return self.blocks[start : np.searchsorted(self._starts, last, "left")]

    def locate(self, positions: Longs) -> tuple[Longs, Longs]:
        """Block, and row among those of the block that take part, of each position of the stretch."""
        sequence = np.empty(len(positions), np.int64)
        for lane, places in _by_lane(positions, self.lanes):
            sequence[places] = self._permuted(lane, positions[places] // self.lanes)
        return self._blocks_of(sequence)

    def lanes_read(self, size: int, rank: int, world: int, shift: int) -> range:
        """Lanes that a rank reads of a batch of whole rounds over the lanes."""
        start, stop = share(size, rank, world, shift)
        each = size // self.lanes  # rows of a lane in a batch: the same run of every lane
        return range(start // each, -(-stop // each))

    def rows(self, first: int, size: int, count: int, rank: int, world: int, shift: int) -> tuple[Longs, Longs]:
        """What a rank gets of ``count`` batches of whole rounds over the lanes; see :meth:`locate`."""
        each = size // self.lanes
        start, stop = share(size, rank, world, shift)
        lanes = self.lanes_read(size, rank, world, shift)
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
        if self._window is None:
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
        if self._window is None:
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
            found = self._draw(lane, number).permutation(np.arange(size, dtype=np.uint32))
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
        size = self._window or 1
        cuts = [0]
        if self.lanes > 1 or size < last_border:
            cuts += [1, *range(2 + lane % size, last_border, size)] if size > 1 else range(1, last_border)
        found: Longs = borders[[*(cut for cut in cuts if cut < last_border), last_border]]
        return found


class EpochOrder:
    """The order of one epoch. ``rows[b]``: rows of block b (int64); ``shuffle`` None: as stored, in one lane."""

    def __init__(self, rows: Longs, seed: int, epoch: int, shuffle: Shuffle | None) -> None:
        self._seed, self._epoch = seed, epoch
        present = np.flatnonzero(rows)
        self.blocks: Longs = present if shuffle is None else self._draw(0, 0).permutation(present)
        """numbers of the blocks that have rows, in the order of the sequence"""
        self.length = int(rows.sum())
        lanes, window = (shuffle.lanes, shuffle.window) if shuffle is not None else (1, None)
        first = self._opening(rows, shuffle) if shuffle is not None else np.zeros(0, np.int64)
        self.border = int(first.sum())
        """positions of the opening"""
        self._kept: tuple[dict[int, NDArray[np.int32]], ...] = {}, {}
        left = rows[self.blocks]
        for block, taken in zip(self.blocks.tolist(), first.tolist(), strict=False):
            mixed = self._draw(_OPENING_STREAM - 1, block).permutation(np.arange(rows[block], dtype=np.int32))
            self._kept[0][block], self._kept[1][block] = np.sort(mixed[:taken]), np.sort(mixed[taken:])
        left[: len(first)] -= first
        some = left > 0
        self._stretches = (
            Stretch(0, self.blocks[: len(first)], first, len(first), 1, self._draw_of(_OPENING_STREAM)),
            Stretch(1, self.blocks[some], left[some], lanes, window, self._draw_of(1)),
        )

    def __len__(self) -> int:
        return self.length

    def batch(self, first: int, size: int, rank: int = 0, world: int = 1, shift: int = 0) -> Longs:
        """Positions that a rank gets of the global batch ``[first, first + size)``, which may reach beyond the epoch.

        A batch is ordered by stretch and lane, and cut into ``world`` runs, so that a rank reads about ``1 / world`` of
        the lanes.
        """
        cut = min(max(first, self.border), first + size)
        spans = zip(self._stretches, (0, self.border), pairwise((first, cut, first + size)), strict=True)
        positions = np.concatenate([_by_lanes(*span, stretch.lanes, origin) for stretch, origin, span in spans])
        return positions[slice(*share(size, rank, world, shift))]

    def windows(
        self, first: int, size: int, count: int = 1, rank: int = 0, world: int = 1, shift: int = 0
    ) -> Iterator[Window]:
        """The windows that hold what :meth:`rows` gives, by lane (some may hold only what other ranks get)."""
        part = (rank, world, shift)
        for stretch, origin, start, batches in self._runs(first, size, count):
            last = start + size * batches
            if stretch is None:
                positions = self.batch(start, size, *part)
                for half, offset in zip(self._stretches, (0, self.border), strict=True):
                    mine = positions[(positions >= self.border) == bool(half.number)] - offset
                    end = self.border if half.number == 0 else last - offset
                    yield from half.windows(max(0, start - offset), end, np.unique(mine % half.lanes).tolist())
            elif _whole_rounds(start - origin, size, stretch):
                yield from stretch.windows(start - origin, last - origin, stretch.lanes_read(size, *part))
            else:
                found = [self.batch(start + n * size, size, *part) - origin for n in range(batches)]
                lanes = np.unique(np.concatenate(found) % stretch.lanes).tolist()
                yield from stretch.windows(start - origin, last - origin, lanes)

    def window_blocks(self, window: Window) -> Longs:
        """Numbers of the blocks that hold rows of a window."""
        return self._stretches[window.stretch].window_blocks(window)

    def locate(self, positions: Longs) -> tuple[Longs, Longs]:
        """Block number and row inside the block of each position of the epoch (int64, 0 <= position < length)."""
        block, row = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        late = positions >= self.border
        for stretch, origin, mine in zip(self._stretches, (0, self.border), (~late, late), strict=True):
            if mine.any():
                block[mine], row[mine] = self._whole(stretch, *stretch.locate(positions[mine] - origin))
        return block, row

    def rows(
        self, first: int, size: int, count: int, rank: int = 0, world: int = 1, shift: int = 0
    ) -> tuple[Longs, Longs]:
        """What a rank gets of ``count`` global batches of ``size`` positions from ``first`` on: see :meth:`locate`.

        The batches follow each other; within one, rows are in the order of :meth:`batch`.
        """
        part = (rank, world, shift)
        found = []
        for stretch, origin, start, batches in self._runs(first, size, count):
            if stretch is not None and _whole_rounds(start - origin, size, stretch):
                found.append(self._whole(stretch, *stretch.rows(start - origin, size, batches, *part)))
            else:
                positions = [self.batch(start + n * size, size, *part) for n in range(batches)]
                found.append(self.locate(np.concatenate(positions)))
        block, row = (np.concatenate(arrays) if len(found) > 1 else arrays[0] for arrays in zip(*found, strict=True))
        return block, row

    def _runs(self, first: int, size: int, count: int) -> Iterator[tuple[Stretch | None, int, int, int]]:
        """Batches that lie in one stretch (None: one batch that lies in both): its origin, their start and number."""
        opening, body = self._stretches
        before = min(count, max(0, self.border - first) // size)
        across = int(before < count and first + before * size < self.border)
        for stretch, origin, number in ((opening, 0, before), (None, 0, across), (body, self.border, count)):
            number = min(number, count)
            if number:
                yield stretch, origin, first, number
            first, count = first + number * size, count - number

    def _whole(self, stretch: Stretch, block: Longs, row: Longs) -> tuple[Longs, Longs]:
        return block, chosen_rows(self._kept[stretch.number], block, row)

    def _opening(self, rows: Longs, shuffle: Shuffle) -> Longs:
        """Rows of the first blocks that the opening has, in whole rounds over the lanes of the body."""
        counts: Longs = rows[self.blocks[: shuffle.opening]]
        if len(self.blocks) < 2 * shuffle.opening:
            return counts[:0]
        if shuffle.window >= len(self.blocks):
            counts = -(-counts // OPENING_SHARE)
        over = int(counts.sum()) % shuffle.lanes
        counts = np.diff(np.minimum(np.cumsum(counts), counts.sum() - over), prepend=0)
        return counts if counts.all() else counts[:0]

    def _draw_of(self, stream: int) -> Draw:
        return lambda lane, number: self._draw(stream + lane, number)

    def _draw(self, stream: int, number: int) -> np.random.Generator:
        """The random numbers of one use: a Philox counter at a place of its own (Salmon et al., SC 2011)."""
        key = np.array([self._seed, self._epoch], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, number, stream]))


def chosen_rows(kept: Mapping[int, NDArray[np.int32]], block: Longs, row: Longs) -> Longs:
    """Rows inside their block, of rows counted among those that are kept (of a block that is not named: all)."""
    out = row
    for number in np.unique(block).tolist() if kept else ():
        found = kept.get(number)
        if found is not None:
            out = row.copy() if out is row else out
            mine = block == number
            out[mine] = found[row[mine]]
    return out


def share(size: int, rank: int, world: int, shift: int = 0) -> tuple[int, int]:
    """Rows [start, stop) of a batch of ``size`` that a rank gets: runs of equal length, but for one row.

    Ranks from ``shift`` on (and round) get the odd rows. Of several batches that share a step, each begins where the
    one before it left off, and all ranks get equally much in all.
    """
    each, odd = divmod(size, world)
    longer = [(number - shift) % world < odd for number in range(rank + 1)]
    start = rank * each + sum(longer[:rank])
    return start, start + each + longer[rank]


def _by_lanes(first: int, last: int, lanes: int, origin: int) -> Longs:
    """Positions ``[first, last)``, ordered by lane."""
    positions = np.arange(first, last, dtype=np.int64)
    return positions if lanes == 1 else positions[np.argsort((positions - origin) % lanes, kind="stable")]


def _whole_rounds(first: int, size: int, stretch: Stretch) -> bool:
    return first % stretch.lanes == 0 and size % stretch.lanes == 0


def windows_change(
    order: EpochOrder, windows: Iterator[Window], last: dict[tuple[int, int], Window]
) -> tuple[list[int], list[int]]:
    """Blocks that come and blocks that go with these windows.

    ``last``: the last window of each stretch and lane, brought on. All of the opening goes when the body begins.
    """
    begins: list[int] = []
    ends: list[int] = []
    for window in windows:
        place = window.stretch, window.lane
        before = last.get(place)
        if before == window:
            continue
        begins += order.window_blocks(window).tolist()
        over = [place] if before is not None else []
        over += [other for other in last if other[0] < window.stretch]
        for other in over:
            ends += order.window_blocks(last.pop(other)).tolist()
        last[place] = window
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
