"""`SequenceLoader`: ids of many samples packed into sequences of one length, for autoregressive training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.loading.decoding import CODES, Batch
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.order import Window, share, windows_change
from tokenshard.loading.packing import Longs, Packed, pack
from tokenshard.loading.pipeline import Chunk
from tokenshard.loading.plan import Part, Step

STATE_VERSION = 1
_PACKING = 1 << 61
"""Place of the packing's random numbers among those of a seed."""


@dataclass(frozen=True)
class _Layout:
    """What becomes of the decoded samples of a pool: pieces of them -> places in this rank's sequences."""

    lengths: Longs
    """of the framed samples, in the order they are decoded in"""
    pieces: Packed
    """with ``bin`` the sequence among those of the rank, and ``sample`` the decoded sample"""
    rows: int
    ends: list[tuple[int, tuple[int, int, int]]]
    """batches that end here: sequences of the rank up to there, and (epoch, pool, bin) after it"""
    filler: int
    """empty sequences that the last batch of an epoch needs"""


class SequenceLoader:
    """Batches of packed sequences. Iterate over it once an epoch; it goes on where its state is.

    A batch is a dict of int32 tensors [B, length]: `ids`; `sample`, which says to which sample of the sequence an id
    belongs (-1: padding), for block-diagonal attention; and `position`, its place in that sample. Each sample is
    framed as ``[start] ids [separator]``; of several levels, level follows level, with ids of their own.

    The samples of an epoch, in the order of the loader, are packed pool by pool: best-fit decreasing. Only a sample
    that is longer than a sequence is cut; no id is lost or doubled. The sequences depend on dataset, seed, epoch,
    shuffle, length and pool alone. Each rank decodes the samples of its own sequences, and reads the pool for it.
    """

    def __init__(
        self,
        loader: TokenLoader,
        length: int,
        batch_size: int = 8,
        *,
        separator: int,
        pad: int,
        start: int | None = None,
        offset: int = 0,
        global_batch_size: int | None = None,
        pool: int = 4096,
    ) -> None:
        """``loader`` says dataset, order, selection and ranks; its batch size and columns count for nothing.

        ``length``: ids of a sequence. ``batch_size``: sequences of this rank; ``global_batch_size``: of all ranks, and
        goes before it. ``separator`` ends a sample, ``start`` (say, the modality) begins it, ``pad`` fills a sequence.
        ``offset`` is added to all ids, and the sizes of the alphabets before it to those of a level. ``pool``: samples
        that are packed together. The last batch of an epoch is filled up with empty sequences, so that ranks keep in
        step.

        Raises SpecError for values that do not fit the dataset or each other.
        """
        self.loader = loader.codes_only()
        self.length, self.pool_size, self._offset = length, pool, offset
        self._separator, self._start, self._pad = separator, start, pad
        self.global_batch_size = batch_size * loader.world if global_batch_size is None else global_batch_size
        self._extra = 1 + (start is not None)
        alphabets = [level.alphabet for level in loader.dataset.manifest.code.levels[: loader.levels]]
        self._shifts = np.concatenate([[0], np.cumsum(alphabets)]).astype(np.int64) + offset
        self._check()
        self._sizes = _sizes(loader)
        self.epoch = self.pool = self.bin = 0

    def __len__(self) -> int:
        """Batches of an epoch. Packs all of it, which takes about a microsecond a sample."""
        pools = -(-self.loader.epoch_length(self.epoch) // self.pool_size)
        bins = sum(self._packed(self.epoch, pool).bins for pool in range(pools))
        return -(-bins // self.global_batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.epoch, self.pool, self.bin = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: counts batches that were handed out. Small and JSON-able.

        May be loaded at any world size, batch size and number of threads.
        """
        order = {**self.loader.state_dict(), "epoch": self.epoch, "position": 0}
        place = {"length": self.length, "pool_size": self.pool_size, "frame": self._frame}
        return {"version": STATE_VERSION, "order": order, **place, "pool": self.pool, "bin": self.bin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly there. Raises SpecError naming the field in which dataset, order or packing differ."""
        mine = self.state_dict()
        for field in ("version", "length", "pool_size", "frame"):
            if state.get(field) != mine[field]:
                raise SpecError(f"sequence state: {field} is {state.get(field)!r}, but this loader has {mine[field]!r}")
        self.loader.load_state_dict(state["order"])
        pool, place = state.get("pool"), state.get("bin")
        pools = -(-self.loader.epoch_length(self.loader.epoch) // self.pool_size)
        if not (isinstance(pool, int) and isinstance(place, int) and 0 <= pool < max(1, pools) and place >= 0):
            raise SpecError(f"sequence state: pool {pool!r} and bin {place!r} do not lie in the epoch")
        self.epoch, self.pool, self.bin = self.loader.epoch, pool, place

    @property
    def _frame(self) -> list[int | None]:
        return [self._start, self._separator, self._pad, self._offset]

    # -- iteration ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch. With its last batch the loader stands at the start of the next one."""
        epoch = self.epoch
        layouts: deque[_Layout] = deque()
        waiting: list[NDArray[np.int32]] = []  # [3, rows, length]: sequences of a batch that is not complete
        decoded = self.loader.decoded(self._chunks(layouts))
        try:
            for _, batch in decoded:
                layout = layouts.popleft()
                made = np.concatenate([*waiting, self._laid(batch, layout), self._empty(layout.filler)], axis=1)
                before, held = 0, sum(part.shape[1] for part in waiting)
                for end, place in layout.ends:
                    rows = torch.from_numpy(made[:, before : held + end])
                    before = held + end
                    self.epoch, self.pool, self.bin = place
                    yield dict(zip(("ids", "sample", "position"), rows.unbind(0), strict=True))
                waiting = [made[:, before:]]
        finally:
            cast(Any, decoded).close()
        self.set_epoch(epoch + 1)

    def _chunks(self, layouts: deque[_Layout]) -> Iterator[Chunk]:
        """A chunk a pool, and what is to be made of it."""
        epoch, first_bin = self.epoch, self.bin
        plan = self.loader.epoch_plan(epoch)
        size, samples = self.global_batch_size, plan.order.length
        low, high = share(size, self.loader.rank, self.loader.world)
        windows: dict[tuple[int, int], Window] = {}
        done = 0  # sequences since the start, all of whole batches or of the open one
        pools = -(-samples // self.pool_size)
        for pool in range(self.pool, pools):
            packed = self._packed(epoch, pool)
            slots = (done + np.arange(packed.bins - first_bin)) % size
            mine = (slots >= low) & (slots < high)
            rank_row = np.concatenate([np.full(first_bin, -1), np.where(mine, np.cumsum(mine) - 1, -1)])
            chosen = packed.only(rank_row[packed.bin] >= 0)
            needed, place = np.unique(chosen.sample, return_inverse=True)
            needed = needed if len(needed) else np.zeros(1, np.int64)  # none of this rank: decode one all the same
            ends = []
            for end in np.flatnonzero(slots == size - 1).tolist():
                last, after = pool == pools - 1, first_bin + end + 1
                here = (epoch, pool, after) if after < packed.bins else (epoch + last, 0 if last else pool + 1, 0)
                ends.append((int(mine[: end + 1].sum()), here))
            done += len(slots)
            filler = 0
            if pool == pools - 1 and done % size:
                filler = max(0, high - max(low, done % size))
                ends.append((int(mine.sum()) + filler, (epoch + 1, 0, 0)))
            first = pool * self.pool_size
            span = min(self.pool_size, samples - first)
            come, go = windows_change(plan.order, plan.order.windows(first, span), windows)
            block, row = plan.locate(first + needed)
            lengths = self._lengths(block, row)
            pieces = Packed(packed.bins, rank_row[chosen.bin], place, chosen.start, chosen.length)
            layouts.append(_Layout(lengths, pieces, int(mine.sum()), ends, filler))
            yield Chunk(block, row, come, go, [Part(Step(epoch, first, span), len(needed))])
            first_bin = 0

    def _packed(self, epoch: int, pool: int) -> Packed:
        plan = self.loader.epoch_plan(epoch)
        first = pool * self.pool_size
        positions = np.arange(first, min(first + self.pool_size, plan.order.length))
        key = np.array([self.loader.seed, epoch], np.uint64)
        order = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, pool, _PACKING]))
        return pack(self._lengths(*plan.locate(positions)), self.length, order)

    def _lengths(self, block: Longs, row: Longs) -> Longs:
        """Lengths of framed samples."""
        lengths: Longs = self._sizes[self.loader.dataset.group_starts[block] + row] * self.loader.levels + self._extra
        return lengths

    # -- sequences ----------------------------------------------------------------------------------------------------

    def _laid(self, batch: Batch, layout: _Layout) -> NDArray[np.int32]:
        """Sequences of the rank in a pool: ids, sample and position, int32 [3, rows, length]."""
        out = self._empty(layout.rows)
        pieces = layout.pieces
        if not len(pieces.bin):
            return out
        framed = self._framed(batch, layout.lengths)
        starts = np.cumsum(layout.lengths) - layout.lengths
        ends = np.cumsum(pieces.length)
        opens = np.concatenate([[True], pieces.bin[1:] != pieces.bin[:-1]])  # first piece of its sequence
        first = np.maximum.accumulate(np.where(opens, np.arange(len(opens)), 0))
        column = ends - pieces.length - (ends - pieces.length)[first]
        step = np.arange(int(ends[-1])) - np.repeat(ends - pieces.length, pieces.length)
        to = np.repeat(pieces.bin * self.length + column, pieces.length) + step
        flat = out.reshape(3, -1)
        flat[0, to] = framed[np.repeat(starts[pieces.sample] + pieces.start, pieces.length) + step]
        flat[1, to] = np.repeat(np.arange(len(first)) - first, pieces.length)
        flat[2, to] = np.repeat(pieces.start, pieces.length) + step
        return out

    def _framed(self, batch: Batch, lengths: Longs) -> NDArray[np.int32]:
        """Decoded samples with what begins and ends them, back to back."""
        sizes = lengths - self._extra
        framed = np.empty(int(lengths.sum()), np.int32)
        starts = np.cumsum(lengths) - lengths
        lead = self._extra - 1
        if self._start is not None:
            framed[starts] = self._start
        framed[starts + lengths - 1] = self._separator
        levels, codes = self.loader.levels, batch[CODES].numpy()
        if "offsets" not in batch and levels > 1:  # [n, levels, *grid] -> [levels, n * ids]
            codes = codes.reshape(len(lengths), levels, -1).transpose(1, 0, 2)
        codes = codes.reshape(levels, -1)
        each = sizes // levels
        within = np.arange(codes.shape[1]) - np.repeat(np.cumsum(each) - each, each)
        for level, ids in enumerate(codes):
            framed[np.repeat(starts + lead + level * each, each) + within] = ids + self._shifts[level]
        return framed

    def _empty(self, rows: int) -> NDArray[np.int32]:
        out = np.empty((3, rows, self.length), np.int32)
        out[0], out[1], out[2] = self._pad, -1, 0
        return out

    def _check(self) -> None:
        if self.length <= self._extra:
            raise SpecError(f"a sequence of {self.length} ids has no room for a sample and what frames it")
        if self.pool_size < 1 or self.global_batch_size < self.loader.world:
            raise SpecError("a pool needs a sample, and a global batch a sequence a rank")
        taken = range(int(self._shifts[0]), int(self._shifts[-1]))
        for name, value in (("separator", self._separator), ("start", self._start), ("pad", self._pad)):
            if value is not None and (value in taken or value < 0):
                advice = f"the codes are {taken.start} to {taken.stop - 1}; choose another, or a larger offset"
                raise SpecError(f"{name}={value} is no id of its own: {advice}")
        if int(self._shifts[-1]) > np.iinfo(np.int32).max:
            raise SpecError(f"offset={self._offset} makes ids of more than 31 bits")


def _sizes(loader: TokenLoader) -> Longs:
    """Ids in a level of each sample of the dataset."""
    dataset = loader.dataset
    if dataset.fixed_grid is not None:
        return np.full(len(dataset), int(np.prod(dataset.fixed_grid)), np.int64)
    column = dataset.table(["num_tokens"])["num_tokens"]
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(chunk.to_numpy(), np.int64) for chunk in column.chunks)])
