"""Blocks in memory: one row group each, still encoded, laid out so that compiled loops can gather rows of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.codecs.base import Codec, DecodesInPlace, Grids, Ids, ReadsAhead, id_dtype, sample_sizes
from tokenshard.errors import FormatError, SpecError
from tokenshard.shards.bounds import damage_reported
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.reader import RowGroup, values
from tokenshard.shards.shard_list import chunk_lengths

Fixed = NDArray[np.generic]


@dataclass(frozen=True)
class Runs:
    """A run of bytes a row."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int32]
    """[rows + 1], into data"""

    @cached_property
    def places(self) -> tuple[int, int, int]:
        """Addresses of the offsets and of the data, and bytes of these, as the compiled gathers take them."""
        return _address(self.offsets), _address(self.data), self.data.nbytes


@dataclass(frozen=True)
class Level:
    """One level of the codes of a block: a stream a row, or (``codec`` None) the ids of a row as they are."""

    codec: Codec | None
    runs: Runs


@dataclass(frozen=True)
class Block:
    """One row group, ready for gathers."""

    where: str
    levels: tuple[Level, ...]
    grids: Grids
    """int32 [rows, rank]"""
    columns: dict[str, Fixed]
    """fixed-width columns, [rows]"""
    objects: dict[str, pa.Array]
    """all other columns, [rows]"""
    texts: dict[str, Runs]
    """those of them that are strings without nulls, for compiled gathers"""

    @property
    def rows(self) -> int:
        return len(self.grids)


@dataclass(frozen=True)
class BlockReader:
    """Reads blocks of a dataset: the first ``levels`` levels of the codes, and other columns by name."""

    dataset: Dataset
    levels: int
    columns: tuple[str, ...]

    def read(self, number: int, verify: bool = True) -> Block:
        """Row group ``number`` of the dataset. Raises FormatError on damage, StoreError when it cannot be read."""
        group = self.dataset.read_group(number, self.levels, self.columns, verify)
        with damage_reported(group.where):
            block = Block(group.where, _levels(group), np.ascontiguousarray(group.grids), {}, {}, {})
            for name in self.columns:
                array = self._column(group, name)
                if is_fixed_width(array.type):
                    block.columns[name] = _numpy(array)
                    continue
                block.objects[name] = array
                if pa.types.is_string(array.type) and not array.null_count:
                    block.texts[name] = _text(array)
        return block

    def _column(self, group: RowGroup, name: str) -> pa.Array:
        field = self.dataset.schema.field(name)
        if name not in group.table.column_names:  # of an older shard, before the column was there
            array = pa.nulls(group.rows, field.type)
        else:
            array = group.table[name].combine_chunks().cast(field.type)
        if array.null_count and is_fixed_width(field.type):
            advice = f"leave such samples out with where='{name} is not None'"
            raise SpecError(f"{group.where}: column {name!r} has empty cells; {advice}")
        return array


def mean_block_bytes(dataset: Dataset, levels: int) -> int:
    """About what a block takes in memory with the first ``levels`` levels: bytes, by the manifest alone."""
    manifest = dataset.manifest
    lengths = chunk_lengths(manifest.shards, len(manifest.code.columns))
    return max(1, (int(lengths[:, : 1 + levels].sum()) + 32 * len(dataset)) // max(1, len(lengths)))


def is_fixed_width(kind: pa.DataType) -> bool:
    """Whether a column of this type comes as a tensor: integers, floats and booleans."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _numpy(array: pa.Array) -> Fixed:
    if pa.types.is_boolean(array.type):
        return np.ascontiguousarray(values(pc.cast(array, pa.uint8()))).view(np.bool_)
    return np.ascontiguousarray(values(array))


def _text(array: pa.StringArray) -> Runs:
    _, offsets, data = array.buffers()
    start = array.offset
    ends = np.frombuffer(offsets, np.int32)[start : start + len(array) + 1] if offsets else np.zeros(1, np.int32)
    return Runs(np.frombuffer(data or b"", np.uint8), ends)


def _levels(group: RowGroup) -> tuple[Level, ...]:
    streamed = all(length is not None for length in group.lengths) and all(codec.group == 1 for codec in group.codecs)
    if streamed:
        pairs = zip(group.codecs, group.streams, group.lengths, strict=True)
        return tuple(Level(codec, Runs(_bytes(data), _offsets(lengths))) for codec, data, lengths in pairs)
    sizes = sample_sizes(group.grids)  # rows that share streams, or are stored as they are: decoded once, here
    return tuple(Level(None, Runs(_bytes(ids), _offsets(sizes * ids.itemsize))) for ids in group.decode())


def _bytes(data: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(data).view(np.uint8)


def _offsets(lengths: NDArray[np.integer] | None) -> NDArray[np.int32]:
    assert lengths is not None
    ends = np.cumsum(lengths, dtype=np.int64)
    if len(ends) and ends[-1] >= 1 << 31:
        raise FormatError("a row group of 2 GiB or more; convert with fewer samples a row group")
    return np.concatenate([np.zeros(1, np.int32), ends.astype(np.int32)])


@dataclass(frozen=True)
class _Spans:
    """Where the runs of some rows lie in memory, as :func:`gather_kernels.spans` finds them."""

    places: NDArray[np.uint64]
    rooms: NDArray[np.int64]
    lengths: NDArray[np.int32]
    total: int

    def gathered(self, ahead: int = 0) -> NDArray[np.uint8]:
        """The runs back to back, and so many bytes more."""
        from tokenshard.loading import gather_kernels as kernels

        # Arrow keeps what is freed for a while; fresh pages from the system would cost more than filling them.
        out = np.frombuffer(pa.allocate_buffer(self.total + ahead), np.uint8)
        out[self.total :] = 0
        kernels.gather(self.places, self.lengths, out)
        return out


class Gathered:
    """Rows of several blocks, gathered and decoded in one go. ``block[i]`` numbers ``blocks``; int64 both."""

    def __init__(self, blocks: Sequence[Block], block: NDArray[np.int64], row: NDArray[np.int64]) -> None:
        self._blocks, self._block, self._row = blocks, block, row
        self._rows = [item.rows for item in blocks]

    def __len__(self) -> int:
        return len(self._row)

    def grids(self) -> Grids:
        """int32 [rows, rank]"""
        return cast(Grids, self._take([item.grids for item in self._blocks]))

    def column(self, name: str) -> Fixed:
        """A fixed-width column."""
        return self._take([item.columns[name] for item in self._blocks])

    def objects(self, name: str) -> list[object]:
        """Any other column, as Python values."""
        if all(name in item.texts for item in self._blocks):
            return self._texts([item.texts[name] for item in self._blocks])
        starts = np.cumsum([0, *self._rows])
        joined = pa.chunked_array([item.objects[name] for item in self._blocks])
        found: list[object] = joined.take(pa.array(starts[self._block] + self._row)).to_pylist()
        return found

    def _texts(self, runs: Sequence[Runs]) -> list[object]:
        spans = self._spans(runs)
        offsets = np.zeros(len(self._row) + 1, np.int64)
        np.cumsum(spans.lengths, out=offsets[1:])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(spans.gathered())]
        strings: list[object] = pa.Array.from_buffers(pa.large_string(), len(self._row), buffers).to_pylist()
        return strings

    def codes(self, grids: Grids, alphabets: Sequence[int], out: Sequence[Ids]) -> None:
        """Write the ids of each level to ``out`` (flat, rows back to back). Raises FormatError on damage."""
        for level, alphabet in enumerate(alphabets):
            earlier = out[level - 1] if level else None
            codecs = [item.levels[level].codec for item in self._blocks]
            runs = [item.levels[level].runs for item in self._blocks]
            first = codecs[0]
            if all(codec is first for codec in codecs):
                self._decode(first, self._spans(runs), grids, earlier, out[level])
                continue
            sizes = sample_sizes(grids)
            kinds = {id(codec): codec for codec in codecs}
            kind = np.array([list(kinds).index(id(codec)) for codec in codecs])[self._block]
            for number, codec in enumerate(kinds.values()):  # shards of several jobs: each codec decodes its rows
                mine = kind == number
                spread = np.repeat(mine, sizes)
                part = np.empty(int(sizes[mine].sum()), id_dtype(alphabet))
                beside = None if earlier is None else earlier[spread]
                self._decode(codec, self._spans(runs, mine), grids[mine], beside, part)
                out[level][spread] = part

    @staticmethod
    def _decode(codec: Codec | None, spans: _Spans, grids: Grids, earlier: Ids | None, out: Ids) -> None:
        if codec is None:
            out[:] = spans.gathered().view(out.dtype)
        elif isinstance(codec, DecodesInPlace):
            codec.decode_in_place(spans.places, spans.rooms, spans.lengths, grids, out)
        elif isinstance(codec, ReadsAhead):
            before = earlier if codec.needs_earlier else None
            codec.decode_ahead(spans.gathered(codec.ahead), spans.lengths, grids, out, before)
        else:
            codec.decode(spans.gathered(), spans.lengths, grids, out, earlier if codec.needs_earlier else None)

    def _spans(self, runs: Sequence[Runs], mine: NDArray[np.bool_] | slice = slice(None)) -> _Spans:
        """Where the runs of the rows lie (``mine``: of some of them). Raises FormatError for those outside a block."""
        from tokenshard.loading import gather_kernels as kernels

        blocks = np.array([(rows, *item.places) for rows, item in zip(self._rows, runs, strict=True)], np.uint64)
        block, row = self._block[mine], self._row[mine]
        places, rooms = np.empty(len(row), np.uint64), np.empty(len(row), np.int64)
        lengths = np.empty(len(row), np.int32)
        total = kernels.spans(blocks, block, row, places, rooms, lengths)
        if total == kernels.DAMAGED:
            raise FormatError("rows outside their row group")
        return _Spans(places, rooms, lengths, total)

    def _take(self, arrays: Sequence[Fixed]) -> Fixed:
        from tokenshard.loading import gather_kernels as kernels

        shape = arrays[0].shape[1:]
        out = np.empty((len(self._row), *shape), arrays[0].dtype)
        width = int(np.prod(shape, dtype=np.int64)) * out.itemsize
        flat = out.reshape(-1).view(np.uint8)
        blocks = np.array(list(zip(self._rows, map(_address, arrays), strict=True)), np.uint64)
        if not kernels.take(blocks, width, self._block, self._row, flat):
            raise FormatError("rows outside their row group")
        return out


def _address(array: NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
