"""From global batches to chunks: which rows a rank reads, and which row groups have to be in memory for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenshard.loading.order import EpochOrder, Longs, Shuffle, Window, windows_change
from tokenshard.loading.pipeline import Chunk
from tokenshard.loading.selection import Selection, Selector


@dataclass(frozen=True)
class Step:
    """One global batch: ``size`` positions of ``epoch`` from ``first`` on; ``extra`` more from where the epoch ends.

    The extra ones are padding (of the same epoch) or the first of the next epoch.
    """

    epoch: int
    first: int
    size: int
    extra: int = 0
    shift: int = 0
    """the rank that gets the first odd row"""


@dataclass(frozen=True)
class Epoch:
    """Which samples an epoch has, and their order."""

    selection: Selection
    order: EpochOrder

    def locate(self, positions: Longs) -> tuple[Longs, Longs]:
        """Row group, and row inside it, of positions of the epoch (int64 [n] each)."""
        block, row = self.order.locate(positions)
        return block, self.selection.locate(block, row)


@dataclass(frozen=True)
class Part:
    """What a rank gets of a step: ``rows`` rows, of which ``inside`` says which lie in its epoch (None: all)."""

    step: Step
    rows: int
    inside: NDArray[np.bool_] | None = None


class Planner:
    """Plans the epochs of one rank. Reads nothing after the selection is made."""

    def __init__(self, selector: Selector, seed: int, shuffle: Shuffle | None, rank: int, world: int) -> None:
        self._selector, self._seed = selector, seed
        self.shuffle = shuffle
        self._rank, self._world = rank, world
        self._epochs: dict[int, Epoch] = {}

    def epoch(self, number: int) -> Epoch:
        """Selection and order of an epoch (the two last made are kept)."""
        found = self._epochs.get(number)
        if found is None:
            selection = self._selector.epoch(self._seed, number)
            found = self._epochs[number] = Epoch(
                selection, EpochOrder(selection.rows, self._seed, number, self.shuffle)
            )
            for old in list(self._epochs)[:-2]:
                del self._epochs[old]
        return found

    def length(self, epoch: int) -> int:
        """Samples of an epoch, of all ranks."""
        return self.epoch(epoch).order.length

    def reshuffle(self, shuffle: Shuffle | None) -> None:
        """Go on with another kind of shuffle."""
        self.shuffle, self._epochs = shuffle, {}

    def chunks(self, steps: Iterator[Step], most: int, pad: bool) -> Iterator[Chunk]:
        """Steps of one epoch in chunks: few at first, so that the first one comes soon, then ``most``.

        ``pad``: extra rows are those of the same epoch, not of the next one.
        """
        windows: dict[tuple[int, int], Window] = {}
        waiting: list[Step] = []
        count = 1
        for step in steps:
            if waiting and waiting[0].first < self.epoch(step.epoch).order.border < step.first + step.size:
                yield self._chunk(waiting, windows)  # the opening does not wait for the blocks of the body
                waiting = []
            if not step.extra and step.size >= self._world:
                waiting.append(step)
                if len(waiting) < count:
                    continue
                yield self._chunk(waiting, windows)
                waiting, count = [], min(most, 2 * count)
                continue
            if waiting:
                yield self._chunk(waiting, windows)
                waiting = []
            yield self._last_chunk(step, pad)
        if waiting:
            yield self._chunk(waiting, windows)

    def _chunk(self, steps: Sequence[Step], windows: dict[tuple[int, int], Window]) -> Chunk:
        now = self.epoch(steps[0].epoch)
        begins: list[int] = []
        ends: list[int] = []
        found: list[tuple[Longs, Longs]] = []
        parts: list[Part] = []
        for run in _runs(steps):
            part = (run[0].first, run[0].size, len(run), self._rank, self._world, run[0].shift)
            come, go = windows_change(now.order, now.order.windows(*part), windows)
            begins, ends = begins + come, ends + go
            found.append(now.order.rows(*part))
            parts += [Part(step, len(found[-1][0]) // len(run)) for step in run]
        block, row = (np.concatenate(arrays) if len(found) > 1 else arrays[0] for arrays in zip(*found, strict=True))
        return Chunk(block, now.selection.locate(block, row), begins, ends, parts)

    def _last_chunk(self, step: Step, pad: bool) -> Chunk:
        """A batch that reaches the end of the epoch, and beyond."""
        now = self.epoch(step.epoch)
        length = now.order.length
        positions = now.order.batch(step.first, step.size + step.extra, self._rank, self._world, step.shift)
        inside = positions < length
        label = Part(step, len(positions), inside)
        if not len(positions):  # fewer samples than ranks: a batch of none, cut from one row so that it has all columns
            positions, inside = np.array([step.first]), np.array([True])
        block, row = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        block[inside], row[inside] = now.locate(positions[inside])
        if not inside.all():
            later = now if pad else self.epoch(step.epoch + 1)
            block[~inside], row[~inside] = later.locate((positions[~inside] - length) % length)
        needed = np.unique(block).tolist()
        return Chunk(block, row, needed, needed, [label])


def _runs(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Global batches, cut where one does not follow the one before it."""
    start = 0
    for place in range(1, len(steps) + 1):
        step, before = steps[min(place, len(steps) - 1)], steps[place - 1]
        if (step.first, step.size, step.shift) != (before.first + before.size, before.size, before.shift):
            yield steps[start:place]
            start = place
