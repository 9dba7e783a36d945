"""`TokenLoader`: a dataset's shards -> batches of tensors, in a reproducible order, resumable anywhere."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.loading.blocks import Block, BlockReader, Gathered
from tokenshard.loading.decoding import CODES, Batch, Decoder
from tokenshard.loading.order import EpochOrder, Longs, Shuffle, Window, batch_positions, windows_change
from tokenshard.loading.pipeline import Chunk, Pipeline
from tokenshard.loading.ranks import current_rank
from tokenshard.loading.selection import Selection, Selector
from tokenshard.shards.dataset import Dataset

Remainder = Literal["short", "drop", "pad", "spill"]
Verify = Literal["always", "first", "never"]
Damage = Literal["raise", "replace"]
STATE_VERSION = 1
CHUNK_BYTES = 1 << 21
"""Ids that are gathered and decoded in one go."""
MAX_BATCHES = 64


@dataclass(frozen=True)
class _Step:
    """One global batch: ``size`` positions of ``epoch`` from ``first`` on; ``extra`` more from where the epoch ends.

    The extra ones are padding (of the same epoch) or the first of the next epoch.
    """

    epoch: int
    first: int
    size: int
    extra: int = 0


@dataclass(frozen=True)
class _Epoch:
    """Which samples an epoch has, and their order."""

    number: int
    selection: Selection
    order: EpochOrder

    def locate(self, positions: Longs) -> tuple[Longs, Longs]:
        """Row group, and row inside it, of positions of the epoch."""
        block, row = self.order.locate(positions)
        return block, self.selection.locate(block, row)


@dataclass(frozen=True)
class _Part:
    """What a rank gets of a step: ``rows`` rows, of which ``inside`` says which lie in its epoch (None: all)."""

    step: _Step
    rows: int
    inside: NDArray[np.bool_] | None = None


class TokenLoader:
    """Batches of a dataset. Iterate over it once an epoch; it goes on where its state is.

    A batch is a dict: `codes` uint16 [B, *grid] ([B, levels, *grid] for several levels; int32 above 65,536 ids), other
    numeric columns [B], all else as lists of B Python values; `valid` bool [B] with ``remainder="pad"``. Where the
    grid varies `codes` is flat, sample i being ``codes[offsets[i]:offsets[i + 1]]`` of shape ``grid[i]`` (``[levels]``
    in front for several levels), with `grid` int32 [B, rank] and `offsets` int64 [B + 1].

    The order depends on dataset, ``seed``, epoch and ``shuffle`` alone: batch size, ranks, threads and memory only
    decide who gets which part of it. Threads read and decode ahead; no processes, no pickling.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 256,
        shuffle: bool | Shuffle = False,
        seed: int = 0,
        columns: Sequence[str] = (CODES,),
        *,
        global_batch_size: int | None = None,
        drop_last: bool = False,
        remainder: Remainder | None = None,
        where: str | None = None,
        weights: str | None = None,
        levels: int | None = None,
        rank: int | None = None,
        world: int | None = None,
        threads: int | None = None,
        fetch_threads: int = 16,
        prefetch_bytes: int = 256 << 20,
        verify: Verify = "always",
        damage: Damage = "raise",
        pin_memory: bool = False,
    ) -> None:
        """``batch_size`` is this rank's; ``global_batch_size`` that of all ranks together, and goes before it.

        ``remainder`` is what becomes of the samples that do not fill a global batch: `short` (the default: a smaller
        last batch), `drop`, `pad` (repeat samples of the epoch, `valid` False) or `spill` (fill it from the next
        epoch). ``where``: a predicate on other columns, ``"label < 10 and split == 'train'"``: only samples for which
        it holds take part. ``weights``: a column that says how often a sample comes in an epoch; of 2.5, two or three
        times. ``levels``: only the first so many. ``rank`` and ``world``: by default those of torch.distributed or Ray
        Train, else 0 of 1. ``prefetch_bytes``: about what the encoded blocks in memory may take; the default shuffle is
        the best mix within it. ``verify``: the checksums of the manifest are compared `always`, in the `first` epoch
        or `never`. ``damage``: a damaged row group raises, or its samples are replaced by others of the batch, with
        `valid` False, and :attr:`damaged` says where it lies.

        Raises SpecError for options that do not fit the dataset or each other.
        """
        self.dataset, self.seed, self.columns = dataset, seed, tuple(dict.fromkeys(columns))
        found = current_rank()
        self.rank, self.world = found[0] if rank is None else rank, found[1] if world is None else world
        self.global_batch_size = batch_size * self.world if global_batch_size is None else global_batch_size
        self.remainder: Remainder = remainder or ("drop" if drop_last else "short")
        self.levels = len(dataset.manifest.code.levels) if levels is None else levels
        self.epoch = self.position = 0
        self._threads = min(4, _cpus()) if threads is None else threads
        self._fetch_threads, self._verify = fetch_threads, verify
        self._damage = damage
        self.damaged: dict[int, str] = {}
        """row groups that were found damaged (``damage="replace"``), and how"""
        self._check(drop_last, remainder, weights is not None)
        self._decoder = Decoder(dataset, self.columns, self.levels, pin_memory)
        self._chosen = hashlib.sha256(repr((where, weights)).encode()).hexdigest()[:8] if where or weights else None
        self._selector = Selector(dataset, where, weights)
        self._cached: _Epoch | None = None
        self._block_bytes = _mean_block_bytes(dataset, self.levels)
        self._held = max(2, prefetch_bytes // self._block_bytes)
        within = Shuffle.within(self._selector.epoch(seed, 0).blocks, max(1, 3 * self._held // 4))
        self.shuffle: Shuffle | None = shuffle if isinstance(shuffle, Shuffle) else within if shuffle else None

    # -- length and state ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of an epoch, the same on all ranks (with `spill`: of the current one, from its first position)."""
        size, length = self.global_batch_size, self._length(self.epoch)
        if self.remainder == "drop":
            return length // size
        if self.remainder == "spill":
            length -= self._spilled(self.epoch)
        return max(0, -(-length // size))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.epoch, self.position = epoch, self._spilled(epoch) if self.remainder == "spill" else 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: counts batches that were handed out. Small and JSON-able.

        May be loaded at any world size, batch size and number of threads.
        """
        shuffle = [self.shuffle.lanes, self.shuffle.window] if self.shuffle else None
        return {
            "version": STATE_VERSION,
            "dataset": self.dataset.fingerprint[:16],
            "where": self._chosen,
            "seed": self.seed,
            "shuffle": shuffle,
            "epoch": self.epoch,
            "position": self.position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly there. Raises SpecError naming the field in which dataset or order differ."""
        mine = self.state_dict()
        for field in ("version", "dataset", "where", "seed"):
            if state.get(field) != mine[field]:
                raise SpecError(f"loader state: {field} is {state.get(field)!r}, but this loader has {mine[field]!r}")
        shuffle = state.get("shuffle")
        if (shuffle is None) != (self.shuffle is None):
            raise SpecError(f"loader state: shuffle is {shuffle!r}, but this loader has {mine['shuffle']!r}")
        position, epoch = state.get("position"), state.get("epoch")
        if not (isinstance(epoch, int) and epoch >= 0):
            raise SpecError(f"loader state: {epoch!r} is not the number of an epoch")
        if not (isinstance(position, int) and 0 <= position <= self._length(epoch)):
            raise SpecError(f"loader state: position {position!r} does not lie in epoch {epoch}")
        self.shuffle = None if shuffle is None else Shuffle(*map(int, shuffle))
        self.epoch, self.position, self._cached = epoch, position, None

    # -- iteration ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch. With its last batch the loader stands at the start of the next one."""
        return self.every(0, 1)

    def every(self, first: int, step: int) -> Iterator[Batch]:
        """Of the batches that are left of the epoch, number ``first`` and every ``step``-th from there.

        What one of ``step`` worker processes hands out, where a `DataLoader` takes from them in turn.
        """
        epoch = self.epoch
        reader = BlockReader(self.dataset, self.levels, self._read_columns(), self._verifies())
        pipeline = Pipeline(
            lambda number: self._fetch(reader, number), self._decode, self._threads, self._fetch_threads, self._held
        )
        results = pipeline.run(self._chunks(first, step))
        empty = True
        try:
            for batches in results:
                for part, batch in batches:
                    empty = False
                    self.epoch, self.position = self._after(part)
                    yield batch
        finally:
            cast(Any, results).close()
        if empty or step > 1:
            self.set_epoch(epoch + 1)

    def sample_numbers(self) -> Iterator[Longs]:
        """Numbers in the dataset of the samples of each batch that is left of the epoch. Reads nothing."""
        starts = self.dataset.group_starts
        for chunk in self._chunks(0, 1):
            ends = np.cumsum([part.rows for part in chunk.label])
            yield from np.split((starts[chunk.block] + chunk.row)[: ends[-1]], ends[:-1])

    def _after(self, step: _Step) -> tuple[int, int]:
        """Epoch and position once a step was handed out."""
        end = step.first + step.size
        if end + (self.global_batch_size if self.remainder == "drop" else 1) <= self._length(step.epoch):
            return step.epoch, end
        return step.epoch + 1, step.extra if self.remainder == "spill" else 0

    def _fetch(self, reader: BlockReader, number: int) -> Block | None:
        try:
            return reader.read(number)
        except FormatError as error:
            if self._damage == "raise":
                raise
            self.damaged[number] = str(error)
            return None

    def _verifies(self) -> bool:
        return self._verify == "always" or (self._verify == "first" and self.epoch == 0)

    def _read_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name != CODES)

    def _steps(self) -> Iterator[_Step]:
        """The global batches from the current position to the end of the epoch."""
        size, length, epoch = self.global_batch_size, self._length(self.epoch), self.epoch
        first = self.position
        while first + size <= length:
            yield _Step(epoch, first, size)
            first += size
        left = length - first
        if left > 0 and self.remainder != "drop":
            yield _Step(epoch, first, left, 0 if self.remainder == "short" else size - left)

    def _open(self, epoch: int) -> _Epoch:
        """Selection and order of an epoch."""
        if self._cached is None or self._cached.number != epoch:
            selection = self._selector.epoch(self.seed, epoch)
            self._cached = _Epoch(epoch, selection, EpochOrder(selection.rows, self.seed, epoch, self.shuffle))
        return self._cached

    def _length(self, epoch: int) -> int:
        return self._open(epoch).order.length

    def _spilled(self, epoch: int) -> int:
        """Samples of an epoch that went into the last batch of the one before it."""
        return -(epoch * self._length(epoch)) % self.global_batch_size if epoch else 0

    def _chunks(self, begin: int, every: int) -> Iterator[Chunk]:
        """Plans the epoch: few batches at first, so that the first one comes soon, then as many as pay."""
        now, most, count = self._open(self.epoch), self._batches_a_chunk(), 1
        windows: dict[int, Window] = {}
        waiting: list[_Step] = []
        for step in itertools.islice(self._steps(), begin, None, every):
            if step.size == self.global_batch_size:
                waiting.append(step)
                if len(waiting) < count:
                    continue
                yield self._chunk(now, waiting, windows)
                waiting, count = [], min(most, 2 * count)
                continue
            if waiting:
                yield self._chunk(now, waiting, windows)
                waiting = []
            yield self._last_chunk(now, step)
        if waiting:
            yield self._chunk(now, waiting, windows)

    def _batches_a_chunk(self) -> int:
        ids = (
            self.dataset.manifest.totals.ids
            * self.levels
            // max(1, len(self.dataset) * len(self.dataset.manifest.code.levels))
        )
        batch = max(1, 2 * ids * self.global_batch_size // self.world)
        return max(1, min(MAX_BATCHES, CHUNK_BYTES // batch))

    def _chunk(self, now: _Epoch, steps: Sequence[_Step], windows: dict[int, Window]) -> Chunk:
        begins: list[int] = []
        ends: list[int] = []
        found: list[tuple[Longs, Longs]] = []
        for run in _runs(steps):
            part = (run[0].first, run[0].size, len(run), self.rank, self.world)
            come, go = windows_change(now.order, now.order.windows(*part), windows)
            begins, ends = begins + come, ends + go
            found.append(now.order.rows(*part))
        block, row = (np.concatenate(arrays) if len(found) > 1 else arrays[0] for arrays in zip(*found, strict=True))
        row = now.selection.locate(block, row)
        return Chunk(block, row, begins, ends, [_Part(step, self._rank_size(step)) for step in steps])

    def _last_chunk(self, now: _Epoch, step: _Step) -> Chunk:
        """A batch that reaches the end of the epoch, and beyond."""
        length = now.order.length
        positions = batch_positions(step.first, step.size + step.extra, now.order.lanes, self.rank, self.world)
        inside = positions < length
        later = now if self.remainder == "pad" else self._open(step.epoch + 1)
        part = _Part(step, len(positions), inside)
        if not len(positions):  # fewer samples than ranks: a batch of none, cut from one row so that it has all columns
            positions, inside = np.array([step.first]), np.array([True])
        block, row = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        block[inside], row[inside] = now.locate(positions[inside])
        block[~inside], row[~inside] = later.locate((positions[~inside] - length) % length)
        needed = np.unique(block).tolist()
        return Chunk(block, row, needed, needed, [part])

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(self, chunk: Chunk, found: dict[int, Block | None]) -> list[tuple[_Step, Batch]]:
        blocks = {number: block for number, block in found.items() if block is not None}
        numbers = sorted(blocks)
        sound = np.isin(chunk.block, numbers)
        if not sound.any() and len(sound):
            raise FormatError(f"all row groups of a batch are damaged: {'; '.join(self.damaged.values())}")
        place = np.where(sound, np.arange(len(sound)), sound.argmax())  # rows that stand in for those that are lost
        block, row = chunk.block[place], chunk.row[place]
        rows = Gathered([blocks[number] for number in numbers], np.searchsorted(numbers, block), row)
        parts: list[_Part] = chunk.label
        ends = np.cumsum([part.rows for part in parts]).tolist()
        spans = list(zip([0, *ends], ends, strict=False))
        batches = self._decoder.batches(rows, len(chunk.row), spans)
        if self.remainder == "pad" or self._damage == "replace":
            for part, batch, (start, end) in zip(parts, batches, spans, strict=True):
                valid = sound[start:end] if part.inside is None else sound[start:end] & part.inside
                batch["valid"] = torch.from_numpy(valid)
        return [(part.step, batch) for part, batch in zip(parts, batches, strict=True)]

    def _rank_size(self, step: _Step) -> int:
        size = step.size + step.extra
        return size * (self.rank + 1) // self.world - size * self.rank // self.world

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check(self, drop_last: bool, remainder: str | None, weighted: bool) -> None:
        known = [*self.dataset.schema.names, CODES]
        for name in self.columns:
            if name not in known:
                raise SpecError(f"{self.dataset.store.root}: no column {name!r}; there are {', '.join(known)}")
        if drop_last and remainder not in (None, "drop"):
            raise SpecError(f"drop_last and remainder={remainder!r} contradict each other")
        if weighted and self.remainder == "spill":
            raise SpecError("remainder='spill' needs epochs of equal length; weights make them differ")
        for name, value, allowed in (
            ("remainder", self.remainder, get_args(Remainder)),
            ("verify", self._verify, get_args(Verify)),
            ("damage", self._damage, get_args(Damage)),
        ):
            if value not in allowed:
                raise SpecError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        if not 0 <= self.rank < self.world:
            raise SpecError(f"rank {self.rank} does not lie in a world of {self.world}")
        if self.global_batch_size < self.world:
            raise SpecError(f"a global batch of {self.global_batch_size} is too small for {self.world} ranks")
        most = len(self.dataset.manifest.code.levels)
        if not 1 <= self.levels <= most:
            raise SpecError(f"levels must be from 1 to {most}, not {self.levels}")
        if self._threads < 0 or self._fetch_threads < 1:
            raise SpecError("threads must be at least 0, and fetch_threads at least 1")


def _runs(steps: Sequence[_Step]) -> Iterator[Sequence[_Step]]:
    """Global batches, cut where one does not follow the one before it."""
    start = 0
    for place in range(1, len(steps) + 1):
        if place == len(steps) or steps[place].first != steps[place - 1].first + steps[place - 1].size:
            yield steps[start:place]
            start = place


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mean_block_bytes(dataset: Dataset, levels: int) -> int:
    groups = [group for shard in dataset.manifest.shards for group in shard.row_groups]
    total = sum(group.sizes.length + sum(chunk.length for chunk in group.codes[:levels]) for group in groups)
    rows = sum(group.rows for group in groups)
    return max(1, (total + 32 * rows) // max(1, len(groups)))
