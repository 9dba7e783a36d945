"""Reads one shard: the codes of a row group with one range read, and the user's columns by projection.

Everything is checked on the way: the footer, the size columns and the streams against the checksums in the manifest,
other columns against their page CRCs, and all sizes before anything is allocated. Loader and search build on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from tokenshard.codecs.base import Codec, Grids, Ids, Lengths, OpenBlock, RandomAccess, id_dtype, sample_sizes
from tokenshard.errors import FormatError
from tokenshard.parquet import open_parquet
from tokenshard.ranged import RangedFile
from tokenshard.shards.bounds import check_sizes, damage_reported, require
from tokenshard.shards.chunks import Span, column_chunks
from tokenshard.shards.describe import MAGIC
from tokenshard.shards.limits import MAX_FOOTER_BYTES
from tokenshard.shards.schema import NUM_TOKENS, ShardFooter, check_layouts, is_list, length_name, size_names
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import ChunkEntry, ShardEntry
from tokenshard.store import Store

CodecLoader = Callable[[CodecSpec], Codec]
GAP = 1 << 15
"""Bytes between two wanted columns that are fetched with them rather than with a request of their own."""


@dataclass(frozen=True)
class RowGroup:
    """The fetched and verified codes of one row group, still encoded (list columns: decoded by Arrow already)."""

    where: str
    """shard and row group, for messages"""
    grids: Grids
    """int32 [rows, rank]"""
    codecs: tuple[Codec, ...]
    """one a fetched level"""
    specs: tuple[CodecSpec, ...]
    streams: tuple[NDArray[Any], ...]
    """one a fetched level: uint8 streams back to back, or the ids themselves where ``lengths`` is None"""
    lengths: tuple[Lengths | None, ...]
    table: pa.Table
    """the other columns that were asked for"""

    @property
    def rows(self) -> int:
        """Samples in the row group."""
        return len(self.grids)

    @property
    def nbytes(self) -> int:
        """Bytes it takes in memory, encoded as it is."""
        return sum(stream.nbytes for stream in self.streams) + self.grids.nbytes

    def decode(self, rows: NDArray[np.int64] | None = None) -> tuple[Ids, ...]:
        """Ids of the given rows (in that order; None: all), one flat array a level, samples back to back in C order.

        uint16 where the level's alphabet has at most 65,536 entries, else int32. Raises FormatError on damage.
        """
        group = math.lcm(*(codec.group for codec in self.codecs))
        if rows is None or group == 1:
            return self._decode(rows)
        members = (np.unique(rows // group)[:, None] * group + np.arange(group)).ravel()
        members = members[members < self.rows]
        ends, places = np.cumsum(sample_sizes(self.grids)[members]), np.searchsorted(members, rows)
        return tuple(cast(Ids, _gather(ids, ends, places)) for ids in self._decode(members))

    def of_rows(self, rows: NDArray[np.int64]) -> RowGroup:
        """Just some rows, in that order. Those that share streams with others are decoded for it."""
        alone = math.lcm(*(codec.group for codec in self.codecs)) == 1
        sizes = [length if alone else None for length in self.lengths]
        streams = tuple(
            data if kept is None else _gather(data, ends, rows)
            for data, kept, ends in zip(self.streams, sizes, self._ends, strict=True)
        )
        if any(kept is None for kept in sizes):
            decoded = self.decode(rows)
            streams = tuple(
                ids if kept is None else data for ids, kept, data in zip(decoded, sizes, streams, strict=True)
            )
        lengths = tuple(None if kept is None else kept[rows] for kept in sizes)
        table = self.table.take(pa.array(rows))
        return replace(self, grids=self.grids[rows], streams=streams, lengths=lengths, table=table)

    def decode_row(self, row: int) -> tuple[Ids, ...]:
        """What :meth:`decode` gives for one row, sooner: what can be checked and laid out once, is.

        Raises FormatError on damage.
        """
        if self._opened is None:
            return self.decode(np.array([row]))
        levels: list[Ids] = []
        try:
            for block in self._opened:
                levels.append(block.sample(row, levels[-1] if levels else None))
        except Exception:
            with damage_reported(f"{self.where}, column {self.specs[len(levels)].column}"):
                raise
        return tuple(levels)

    @cached_property
    def _opened(self) -> tuple[OpenBlock, ...] | None:
        blocks: list[OpenBlock] = []
        for spec, codec, data, lengths in zip(self.specs, self.codecs, self.streams, self.lengths, strict=True):
            if lengths is None or not isinstance(codec, RandomAccess):
                return None
            with damage_reported(f"{self.where}, column {spec.column}"):
                blocks.append(codec.open_block(data, lengths, self.grids))
        return tuple(blocks)

    @cached_property
    def _ends(self) -> tuple[NDArray[np.int64], ...]:
        """Where each row ends in the stream of each level."""
        sizes = (sample_sizes(self.grids) if lengths is None else lengths for lengths in self.lengths)
        return tuple(np.cumsum(lengths, dtype=np.int64) for lengths in sizes)

    def _decode(self, rows: NDArray[np.int64] | None) -> tuple[Ids, ...]:
        """Like :meth:`decode`, for rows in whole groups."""
        levels: list[Ids] = []
        for level in range(len(self.specs)):
            levels.append(self._level(level, rows, levels[-1] if level else None))
        return tuple(levels)

    def _level(self, level: int, rows: NDArray[np.int64] | None, before: Ids | None) -> Ids:
        data, lengths, codec = self.streams[level], self.lengths[level], self.codecs[level]
        if lengths is None:
            return cast(Ids, data if rows is None else _gather(data, self._ends[level], rows))
        grids = self.grids
        if rows is not None:
            data, lengths, grids = _gather(data, self._ends[level], rows), lengths[rows], grids[rows]
        with damage_reported(f"{self.where}, column {self.specs[level].column}"):
            return codec.decode(data, lengths, grids, earlier=before if codec.needs_earlier else None)


class ShardReader:
    """One shard of a dataset. Holds its footer (one range read) and nothing else; may be used from several threads."""

    def __init__(self, store: Store, entry: ShardEntry, codecs: CodecLoader, with_last: bool = False) -> None:
        """Reads the footer. Raises FormatError when it is damaged, missing or needs a newer reader.

        ``with_last``: the same request fetches the last row group, for a :meth:`read_group` that follows.
        """
        self.entry, self.store, self._codecs = entry, store, codecs
        self.url = store.url(entry.path)
        with damage_reported(self.url):
            require(entry.footer.length <= MAX_FOOTER_BYTES, "footer too large")
            footer_start, end = entry.footer.offset, entry.footer.offset + entry.footer.length
            start = self._last_start if with_last else footer_start
            require(start <= footer_start <= end <= entry.bytes, "footer outside the file")
            tail = self._fetch(start, end - start)
            self._tail = tail if with_last else None
            footer = bytes(tail[footer_start - start :])
            self._verify(footer, entry.footer, "footer")
            with open_parquet(pa.BufferReader(MAGIC + footer)) as parquet:  # Arrow parses metadata from a file only
                self.metadata, self.schema = parquet.metadata, parquet.schema_arrow
            self._footer_bytes = footer
            self.footer = ShardFooter.parse(self.metadata.metadata)
            self.columns = self.footer.columns
            check_layouts(self.columns, self.schema)
            require(self.metadata.num_row_groups == len(entry.row_groups), "row groups differ from the manifest")
            for group, listed in enumerate(entry.row_groups):
                rows = self.metadata.row_group(group).num_rows
                require(rows == listed.rows, f"row group {group} has {rows} rows instead of {listed.rows}")
            require(self.footer.totals.rows == entry.rows, "row count differs from the manifest")
            require(self.footer.totals.ids == entry.ids, "number of ids differs from the manifest")

    def read_group(
        self,
        group: int,
        levels: int | None = None,
        columns: Sequence[str] = (),
        verify: bool = True,
    ) -> RowGroup:
        """Codes of a row group, and the named other columns where the shard has them, with one range read.

        ``levels``: only the first so many (None: all; 0: sizes only); what lies between the wanted columns is not
        fetched where that saves :data:`GAP` bytes. ``verify``: compare with the checksums of the manifest.

        Raises FormatError naming shard and row group when checksums, sizes or limits do not hold.
        """
        where = self.where(group)
        listed = self.entry.row_groups[group]
        specs = self.columns.codes[:levels]
        wanted = (listed.sizes, *listed.codes[: len(specs)])
        others = [name for name in self.schema.names if name in set(columns)]
        with damage_reported(where):
            require(len(specs) == len(wanted) - 1, "fewer code columns than the manifest lists")
            spans = [(chunk.offset, chunk.offset + chunk.length) for chunk in wanted]
            spans += [self.chunks[group][name] for name in others]
            if joins_footer(self.store, self.entry, group, len(specs) == len(self.columns.codes)):
                spans = [(self._last_start, self.entry.bytes)]
            parts = _Parts(self._fetch_tail, self.entry.bytes, spans)
            if verify:
                for chunk, what in zip(wanted, ("sizes", *(spec.column for spec in specs)), strict=True):
                    self._verify(parts.read(chunk.offset, chunk.length), chunk, what)
            table = self._parse(group, [*size_names(self.columns, self.schema), *others], parts.file())
            grids, num_tokens = self._grids(table), _int32(table, NUM_TOKENS)
            check_sizes(num_tokens, grids, self.entry.ids)
            streams: list[NDArray[Any]] = []
            lengths: list[Lengths | None] = []
            for spec, chunk in zip(specs, wanted[1:], strict=True):
                if is_list(self.schema, spec):
                    column = self._parse(group, [spec.column], parts.file())[spec.column]
                    streams.append(_listed_ids(column, num_tokens, spec))
                    lengths.append(None)
                else:
                    stream_bytes = _int32(table, length_name(spec))
                    require(bool((stream_bytes >= 0).all()), "negative stream length")
                    require(int(stream_bytes.sum(dtype=np.int64)) == chunk.length, "stream lengths do not add up")
                    lengths.append(stream_bytes)
                    streams.append(np.frombuffer(parts.read(chunk.offset, chunk.length), np.uint8))
            codecs = tuple(self._codecs(spec) for spec in specs)
        return RowGroup(where, grids, codecs, specs, tuple(streams), tuple(lengths), table.select(others))

    def where(self, group: int) -> str:
        """Shard, row group and its rows, for messages."""
        start = sum(listed.rows for listed in self.entry.row_groups[:group])
        return f"{self.url}: row group {group} (rows {start} to {start + self.entry.row_groups[group].rows - 1})"

    def read_columns(self, group: int, names: Sequence[str]) -> pa.Table:
        """The named columns of a row group as stored (names the shard lacks are left out), with few range reads.

        Raises FormatError on damage.
        """
        wanted = [name for name in self.schema.names if name in set(names)]
        with damage_reported(self.where(group)):
            read = wanted or [NUM_TOKENS]  # a table without columns still needs its number of rows
            parts = _Parts(self._fetch, self.entry.bytes, [self.chunks[group][name] for name in read])
            return self._parse(group, read, parts.file()).select(wanted)

    @cached_property
    def chunks(self) -> list[dict[str, Span]]:
        """For each row group the byte range [start, end) of every column in the file, by its name."""
        with damage_reported(self.url):
            return column_chunks(self._footer_bytes)

    def _grids(self, table: pa.Table) -> Grids:
        columns = self.columns
        if columns.extents:
            sizes = np.stack([_int32(table, name) for name in columns.extents], axis=1)
            require(bool((sizes >= 0).all()), "negative extent")
            return columns.grids(sizes)
        if columns.rank == 1:
            return _int32(table, NUM_TOKENS)[:, None]
        return np.tile(np.array(columns.grid, np.int32), (table.num_rows, 1))

    def _parse(self, group: int, names: Sequence[str], file: RangedFile) -> pa.Table:
        with open_parquet(file, self.metadata) as parquet:
            table = parquet.read_row_group(group, columns=list(names), use_threads=False)
        require(table.num_rows == self.entry.row_groups[group].rows, "columns are shorter than the row group")
        return table

    def _fetch(self, offset: int, length: int) -> memoryview:
        require(offset >= 0 and offset + length <= self.entry.bytes, "byte range outside the file")
        # Arrow keeps what is freed for a while; fresh pages from the system would cost more than filling them.
        data = memoryview(pa.allocate_buffer(length)).cast("B")
        read = self.store.read_into(self.entry.path, offset, data)
        require(read == length, f"the file ends before byte {offset + length}")
        return data

    def _fetch_tail(self, offset: int, length: int) -> memoryview:
        """What came with the footer, the first time that it is asked for; else a request."""
        tail, self._tail = self._tail, None
        if tail is not None and (offset, length) == (self._last_start, len(tail)):
            return tail
        return self._fetch(offset, length)

    @property
    def _last_start(self) -> int:
        """A byte at or (a few columns) before the begin of the last row group."""
        before = self.entry.row_groups[-2:-1]
        return max(
            (chunk.offset + chunk.length for group in before for chunk in (group.sizes, *group.codes)), default=0
        )

    def _verify(self, data: bytes | memoryview, chunk: ChunkEntry, what: str) -> None:
        if xxhash.xxh64(data).hexdigest() != chunk.xxh64:
            raise FormatError(f"{what} damaged (checksum differs)")


def joins_footer(store: Store, entry: ShardEntry, group: int, whole: bool) -> bool:
    """Whether a row group that is read (``whole``: all levels of it) is fetched together with the footer behind it.

    That saves a request where the shard was not open, and is so in every read, so that a cache knows the range again.
    """
    return whole and not store.is_local and group == len(entry.row_groups) - 1


class _Parts:
    """The fetched parts of a shard file: spans of bytes, joined where the gap between them is small."""

    def __init__(self, fetch: Callable[[int, int], memoryview], size: int, spans: Sequence[Span]) -> None:
        self._size = size
        joined: list[list[int]] = []
        for start, end in sorted(spans):
            if joined and start - joined[-1][1] <= GAP:
                joined[-1][1] = max(joined[-1][1], end)
            else:
                joined.append([start, end])
        self._parts = [(start, fetch(start, end - start)) for start, end in joined]

    def read(self, start: int, length: int) -> memoryview:
        for first, part in self._parts:
            if first <= start <= start + length <= first + len(part):
                return part[start - first : start - first + length]
        raise OSError(f"bytes {start} to {start + length} point outside the column chunks")

    def file(self) -> RangedFile:
        """The shard file with only these parts at hand, so that Arrow can decode their pages."""
        return RangedFile(self._size, lambda start, length: bytes(self.read(start, length)))


def arrange(levels: Sequence[Ids], grids: Grids, fixed: tuple[int, ...] | None) -> NDArray[Any] | list[NDArray[Any]]:
    """Flat ids of each level -> one array [rows, *grid] ([rows, levels, *grid] for several levels).

    Without one ``fixed`` grid: a list with one array a row.
    """
    dtype = np.result_type(*levels)
    if fixed is not None:
        shaped = [ids.reshape(len(grids), *fixed) for ids in levels]
        return shaped[0] if len(shaped) == 1 else np.stack(shaped, axis=1, dtype=dtype)
    ends = np.cumsum(sample_sizes(grids)).tolist()
    spans = list(zip([0, *ends], ends, grids.tolist(), strict=False))
    if len(levels) == 1:
        return [levels[0][start:end].reshape(grid) for start, end, grid in spans]
    return [np.stack([ids[start:end].reshape(grid) for ids in levels], dtype=dtype) for start, end, grid in spans]


def _int32(table: pa.Table, name: str) -> NDArray[np.int32]:
    column = table[name]
    require(column.type == pa.int32() and column.null_count == 0, f"column {name!r} is not int32 without nulls")
    return cast("NDArray[np.int32]", values(column.combine_chunks()))


def values(array: pa.Array) -> NDArray[Any]:
    """Integers without nulls, not copied. (Arrow's own ``to_numpy`` imports pandas: half a second.)"""
    return cast("NDArray[Any]", np.from_dlpack(array))


def _listed_ids(column: pa.ChunkedArray, num_tokens: NDArray[np.int32], spec: CodecSpec) -> Ids:
    array = column.combine_chunks()
    require(array.null_count == 0, f"nulls in column {spec.column!r}")
    require(pa.types.is_unsigned_integer(array.type.value_type), f"column {spec.column!r} is no list of unsigned ids")
    lengths = np.diff(values(array.offsets))
    require(bool((lengths == num_tokens).all()), f"list lengths of {spec.column!r} differ from num_tokens")
    ids = values(array.flatten())
    require(not len(ids) or int(ids.max()) < spec.alphabet, f"ids of {spec.column!r} outside the alphabet")
    return cast(Ids, ids.astype(id_dtype(spec.alphabet), copy=False))


def _gather(data: NDArray[Any], ends: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
    """The pieces of ``data`` (piece i ends at ``ends[i]``, where the next begins) named by ``rows``, back to back."""
    starts = [int(ends[row - 1]) if row else 0 for row in rows.tolist()]
    pieces = [data[start : ends[row]] for start, row in zip(starts, rows.tolist(), strict=True)]
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else data[:0]
