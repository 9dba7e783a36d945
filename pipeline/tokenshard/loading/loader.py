"""`TokenLoader`: a dataset's shards -> batches of tensors, in a reproducible order, resumable anywhere."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import torch

from tokenshard.errors import FormatError, SpecError
from tokenshard.loading.blocks import Block, BlockReader, Gathered, mean_block_bytes
from tokenshard.loading.crop import Crop
from tokenshard.loading.decoding import CODES, Batch, Decoder
from tokenshard.loading.order import Longs, Shuffle
from tokenshard.loading.pipeline import Chunk, Pipeline
from tokenshard.loading.plan import Epoch, Part, Planner, Step
from tokenshard.loading.ranks import current_rank
from tokenshard.loading.selection import Selector
from tokenshard.shards.dataset import Dataset

Remainder = Literal["short", "drop", "pad", "spill"]
Verify = Literal["always", "first", "never"]
Damage = Literal["raise", "replace"]
STATE_VERSION = 1
CHUNK_BYTES = 1 << 21
"""Ids that are gathered and decoded in one go."""
MAX_BATCHES = 64


class TokenLoader:
    """Batches of a dataset. Iterate over it once an epoch; it goes on where its state is.

    A batch is a dict: `codes` uint16 [B, *grid] ([B, levels, *grid] for several levels; int32 above 65,536 ids), other
    numeric columns [B], all else as lists of B Python values; `valid` bool [B] with ``remainder="pad"``. Where the
    grid varies `codes` is flat, sample i being ``codes[offsets[i]:offsets[i + 1]]`` of shape ``grid[i]`` (``[levels]``
    in front for several levels), with `grid` int32 [B, rank] and `offsets` int64 [B + 1].

    The order depends on dataset, ``seed``, epoch and ``shuffle`` alone: batch size, ranks, threads and memory only
    decide who gets which part of it. Threads read and decode ahead; no processes, no pickling.

    Iterating raises FormatError for a damaged row group (with ``damage="replace"``: where all of a batch are),
    StoreError where the store does not answer, and SpecError for a sample smaller than the crop or an empty cell in a
    column of numbers.
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
        crop: Crop | tuple[int, ...] | None = None,
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
        times. ``levels``: only the first so many. ``crop``: of each token grid a part of this size, at a random
        place or as `Crop` says, so that `codes` is [B, *crop] whatever the grids are. ``rank`` and ``world``: by
        default those of torch.distributed or Ray Train, else 0 of 1. ``prefetch_bytes``: about what the encoded blocks
        in memory may take; the default shuffle is the best mix within it, and a dataset that fits is read once and then
        kept. ``verify``: the checksums of the manifest are compared `always` when a row group is read, the `first` time
        or `never`. ``damage``: a damaged row group raises, or its samples are replaced by others of the batch, with
        `valid` False, and `damaged` says where it lies.

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
        self._fetch_threads, self._verify, self._damage = fetch_threads, verify, damage
        self.damaged: dict[int, str] = {}
        """row groups that were found damaged (``damage="replace"``), and how"""
        self._check(drop_last, remainder, weights is not None)
        crop = Crop(crop) if isinstance(crop, tuple) else crop
        if crop is not None:
            crop.check(len(dataset.manifest.code.grid))
        self._decoder = Decoder(dataset, self.columns, self.levels, pin_memory, crop, seed)
        self._chosen = hashlib.sha256(repr((where, weights)).encode()).hexdigest()[:8] if where or weights else None
        selector = Selector(dataset, where, weights)
        self._block_bytes = mean_block_bytes(dataset, self.levels)
        self._held = max(2, prefetch_bytes // self._block_bytes)
        blocks, fitting = selector.epoch(seed, 0).blocks, max(1, 3 * self._held // 4)
        self._kept: dict[int, Block] | None = {} if blocks <= fitting else None
        """blocks that were read, of a dataset that fits in memory"""
        self._verified: set[int] = set()
        kind = Shuffle.within(blocks, fitting) if shuffle is True else shuffle or None
        self._planner = Planner(selector, seed, kind, self.rank, self.world)

    def codes_only(self) -> TokenLoader:
        """A loader of its own over the same epochs, which gives codes and nothing else. For sequences.

        Raises SpecError for ``damage="replace"``: what stands in for a sample has another length.
        """
        if self._damage == "replace":
            raise SpecError("sequences cannot do with damage='replace'; convert or repair the damaged shards")
        loader = copy.copy(self)
        loader.columns, loader.remainder = (CODES,), "short"
        loader._decoder = Decoder(self.dataset, loader.columns, self.levels)
        loader._kept = None if self._kept is None else {}
        return loader

    def epoch_plan(self, epoch: int) -> Epoch:
        """Which samples an epoch has, and their order: a function of dataset, seed, epoch, shuffle and selection."""
        return self._planner.epoch(epoch)

    # -- length and state ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of an epoch, the same on all ranks (with `spill`: of the current one, from its first position)."""
        size, length = self.global_batch_size, self.epoch_length(self.epoch)
        if self.remainder == "drop":
            return length // size
        if self.remainder == "spill":
            length -= self._spilled(self.epoch)
        return max(0, -(-length // size))

    @property
    def shuffle(self) -> Shuffle | None:
        """How far rows are mixed; None: as stored."""
        return self._planner.shuffle

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch (from 0)."""
        self.epoch, self.position = epoch, self._spilled(epoch) if self.remainder == "spill" else 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: counts batches that were handed out. Below 200 bytes of JSON.

        May be loaded at any world size, batch size and number of threads.
        """
        return {
            "version": STATE_VERSION,
            "dataset": self.dataset.fingerprint[:16],
            "where": self._chosen,
            "seed": self.seed,
            "shuffle": list(astuple(self.shuffle)) if self.shuffle else None,
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
        if not (isinstance(position, int) and 0 <= position <= self.epoch_length(epoch)):
            raise SpecError(f"loader state: position {position!r} does not lie in epoch {epoch}")
        self._planner.reshuffle(None if shuffle is None else Shuffle(*map(int, shuffle)))
        self.epoch, self.position = epoch, position

    # -- iteration ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch. With its last batch the loader stands at the start of the next one."""
        return self.every(0, 1)

    def every(self, first: int, step: int) -> Iterator[Batch]:
        """Of the batches that are left of the epoch, number ``first`` and every ``step``-th from there.

        What one of ``step`` worker processes hands out, where a `DataLoader` takes from them in turn. Raises what
        iterating does.
        """
        epoch = self.epoch
        empty = True
        for batch in self._run(itertools.islice(self._steps(), first, None, step)):
            empty = False
            yield batch
        if empty or step > 1:
            self.set_epoch(epoch + 1)

    def quotas(self, quotas: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """A batch for each (rows of all ranks, rank that gets the first odd row), through epochs without an end.

        A batch that the rest of an epoch does not fill is filled from the next one. For mixtures.
        """
        left = iter(quotas)
        while True:
            yield from self._run(self._quota_steps(left))

    def _run(self, steps: Iterator[Step]) -> Iterator[Batch]:
        decoded = self.decoded(self._chunks(steps))
        try:
            for step, batch in decoded:
                self.epoch, self.position = self._after(step)
                yield batch
        finally:
            cast(Any, decoded).close()

    def decoded(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Step, Batch]]:
        """Reads and decodes chunks ahead of the consumer: the batch of each part of each chunk."""
        reader = BlockReader(self.dataset, self.levels, self._read_columns())
        pipeline = Pipeline(
            lambda number: self._fetch(reader, number), self._decode, self._threads, self._fetch_threads, self._held
        )
        results = pipeline.run(chunks)
        try:
            for batches in results:
                yield from batches
        finally:
            cast(Any, results).close()

    def sample_numbers(self) -> Iterator[Longs]:
        """Numbers in the dataset of the samples of each batch that is left of the epoch, int64 [B]. Reads nothing."""
        starts = self.dataset.group_starts
        for chunk in self._chunks(self._steps()):
            ends = np.cumsum([part.rows for part in chunk.label])
            yield from np.split((starts[chunk.block] + chunk.row)[: ends[-1]], ends[:-1])

    def plan(self, epoch: int = 0, steps: Iterable[int] = range(10)) -> pa.Table:
        """Who gets what in these global batches of an epoch: `step`, `rank`, `sample` (its number in the dataset).

        One row a sample, int64, in the order in which batches hold them; samples that only fill up the last batch are
        not among them. Reads nothing. Raises SpecError for a step that the epoch has not.
        """
        order, size = self.epoch_plan(epoch).order, self.global_batch_size
        origin = self._spilled(epoch) if self.remainder == "spill" else 0
        rows: list[Longs] = []
        for step in steps:
            first = origin + step * size
            if not (step >= 0 and first < order.length):
                raise SpecError(f"epoch {epoch} has no step {step}: it has {order.length} samples in batches of {size}")
            full = self.remainder in ("pad", "spill")
            count = size if full else min(size, order.length - first)
            for rank in range(self.world):
                positions = order.batch(first, count, rank, self.world)
                block, row = self.epoch_plan(epoch).locate(positions[positions < order.length])
                sample = self.dataset.group_starts[block] + row
                rows.append(np.stack([np.full(len(sample), step), np.full(len(sample), rank), sample]))
        joined = np.concatenate([np.zeros((3, 0), np.int64), *rows], axis=1)
        return pa.table(dict(zip(("step", "rank", "sample"), map(pa.array, joined), strict=True)))

    def _after(self, step: Step) -> tuple[int, int]:
        """Epoch and position once a step was handed out."""
        end = step.first + step.size
        if end + (self.global_batch_size if self.remainder == "drop" else 1) <= self.epoch_length(step.epoch):
            return step.epoch, end
        return step.epoch + 1, step.extra if self.remainder == "spill" else 0

    def _fetch(self, reader: BlockReader, number: int) -> Block | None:
        block = self._kept.get(number) if self._kept is not None else None
        if block is not None:
            return block
        try:
            verify = self._verify == "always" or (self._verify == "first" and number not in self._verified)
            block = reader.read(number, verify)
        except FormatError as error:
            if self._damage == "raise":
                raise
            self.damaged[number] = str(error)
            return None
        self._verified.add(number)
        if self._kept is not None:
            self._kept[number] = block
        return block

    def _read_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name != CODES)

    def _steps(self) -> Iterator[Step]:
        """The global batches from the current position to the end of the epoch."""
        size, length, epoch = self.global_batch_size, self.epoch_length(self.epoch), self.epoch
        first = self.position
        while first + size <= length:
            yield Step(epoch, first, size)
            first += size
        left = length - first
        if left > 0 and self.remainder != "drop":
            yield Step(epoch, first, left, 0 if self.remainder == "short" else size - left)

    def _quota_steps(self, quotas: Iterator[tuple[int, int]]) -> Iterator[Step]:
        """Global batches of these sizes, to the end of the epoch."""
        epoch, first, length = self.epoch, self.position, self.epoch_length(self.epoch)
        while first < length:
            size, shift = next(quotas)
            inside = min(size, length - first)
            yield Step(epoch, first, inside, size - inside, shift)
            first += inside

    def epoch_length(self, epoch: int) -> int:
        """Samples of an epoch, of all ranks."""
        return self._planner.length(epoch)

    def _spilled(self, epoch: int) -> int:
        """Samples of an epoch that went into the last batch of the one before it."""
        return -(epoch * self.epoch_length(epoch)) % self.global_batch_size if epoch else 0

    def _chunks(self, steps: Iterator[Step]) -> Iterator[Chunk]:
        levels = len(self.dataset.manifest.code.levels)
        ids = self.dataset.manifest.totals.ids * self.levels // max(1, len(self.dataset) * levels)
        batch = max(1, 2 * ids * self.global_batch_size // self.world)
        most = max(1, min(MAX_BATCHES, CHUNK_BYTES // batch))
        return self._planner.chunks(steps, most, self.remainder == "pad")

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(self, chunk: Chunk, found: dict[int, Block | None]) -> list[tuple[Step, Batch]]:
        blocks = [block for block in found.values() if block is not None]
        place = np.empty(max(found, default=-1) + 1, np.int64)  # of each block in the list; -1 for those that are lost
        place[list(found)] = np.cumsum([block is not None for block in found.values()]) - 1
        block, row, sound = chunk.block, chunk.row, np.ones(len(chunk.row), np.bool_)
        if len(blocks) < len(found):
            place[[number for number, block in found.items() if block is None]] = -1
            sound = place[block] >= 0
            if not sound.any():
                raise FormatError(f"all row groups of a batch are damaged: {'; '.join(self.damaged.values())}")
            stand_in = np.where(sound, np.arange(len(sound)), sound.argmax())
            block, row = block[stand_in], row[stand_in]
        parts: list[Part] = chunk.label
        ends = np.cumsum([part.rows for part in parts]).tolist()
        spans = list(zip([0, *ends], ends, strict=False))
        rows = Gathered(blocks, place[block], row)
        crops = self._decoder.crop is not None
        batches = self._decoder.batches(rows, spans, self._samples(parts, block, row) if crops else None)
        if self.remainder == "pad" or self._damage == "replace":
            for part, batch, (start, end) in zip(parts, batches, spans, strict=True):
                valid = sound[start:end] if part.inside is None else sound[start:end] & part.inside
                batch["valid"] = torch.from_numpy(valid)
        return [(part.step, batch) for part, batch in zip(parts, batches, strict=True)]

    def _samples(self, parts: Sequence[Part], block: Longs, row: Longs) -> tuple[Longs, Longs]:
        """Numbers of the samples of a chunk in the dataset, and the epoch that each is of."""
        epochs = [np.full(part.rows, part.step.epoch) for part in parts]
        if self.remainder == "spill":
            epochs = [
                now if part.inside is None else now + ~part.inside for now, part in zip(epochs, parts, strict=True)
            ]
        epoch = np.concatenate(epochs) if sum(part.rows for part in parts) else np.zeros(len(row), np.int64)
        return self.dataset.group_starts[block] + row, epoch

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


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
