"""Writes one shard file: ids are entropy-coded, gathered into row groups of about 2 MiB, and streamed out as Parquet.

Last step of a work unit. The file's bytes depend on the rows and the settings alone, not on how rows were cut into
``append`` calls: row groups are cut by row counts and stream sizes, short samples are grouped from the first row of
the shard on, and nothing of the machine or the time is written.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenshard.codecs.base import Bytes, Codec, Ids, Lengths, sample_sizes
from tokenshard.codecs.extension import check_same_package
from tokenshard.codecs.zstd import LEVEL as LIST_LEVEL
from tokenshard.codecs.zstd import ZstdCodec
from tokenshard.errors import SpecError
from tokenshard.parquet import open_parquet
from tokenshard.shards.describe import describe_shard
from tokenshard.shards.limits import MAX_CHUNK_BYTES, MAX_GROUP_BYTES, MAX_GROUP_ROWS, MAX_ROW_GROUPS
from tokenshard.shards.schema import (
    KEY,
    NUM_TOKENS,
    CodeColumns,
    ShardFooter,
    ShardTotals,
    is_list,
    length_name,
    shard_schema,
)
from tokenshard.spec.manifest import ShardEntry, TokenizerEntry

ROW_GROUP_BYTES = 2 << 20
MIN_GROUP_ROWS = 64
ZSTD_LEVEL = 3
NO_COLUMNS = pa.schema([])


@dataclass(frozen=True)
class TokenBatch:
    """Tokenized rows to be appended to a shard, in order."""

    keys: Sequence[str]
    sizes: NDArray[np.int32]
    """[rows, rank]: input extents (e.g. pixels) where the shard has extent columns, else token grids"""
    ids: tuple[Ids, ...]
    """one flat array a level: the samples back to back, each in C order"""
    raw_bytes: int
    """bytes of the raw inputs of all rows together"""
    columns: pa.Table | None = None
    """the user's label and metadata columns; None where there are none"""


class ShardWriter:
    """Streams rows into a Parquet file at ``path``; memory holds one row group and one batch.

    ``name`` is the path the file will have in the dataset (`data/<job>-<unit>.parquet`); ``codecs`` has one codec a
    level, in the order of ``columns.codes``. Use as a context manager: an exception inside removes the file.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        columns: CodeColumns,
        codecs: Sequence[Codec],
        tokenizer: TokenizerEntry,
        user_columns: pa.Schema = NO_COLUMNS,
        row_group_bytes: int = ROW_GROUP_BYTES,
    ) -> None:
        self.path, self.name, self.columns, self.tokenizer = path, name, columns.checked(), tokenizer
        given = [(codec.name, codec.alphabet, codec.group) for codec in codecs]
        if given != [(spec.codec, spec.alphabet, spec.group) for spec in columns.codes]:
            raise SpecError(f"{name}: the codecs are not those of the code columns")
        for codec, spec in zip(codecs, columns.codes, strict=True):
            check_same_package(codec, spec)
        self.codecs = tuple(codecs)
        self.schema = shard_schema(columns, tuple(codec.layout for codec in codecs), user_columns)
        self._user_schema = pa.schema([self.schema.field(name) for name in user_columns.names])
        self._target = row_group_bytes
        self._group = math.lcm(*(codec.group for codec in codecs))
        self._held: list[TokenBatch] = []
        self._pending: list[pa.Table] = []
        self._stream_bytes = np.empty(0, np.int64)
        self._group_rows = 0
        self._row_groups = 0
        self._rows = self._ids = self._raw_bytes = 0
        self._grid: tuple[int | None, ...] | None = None
        self._file: pq.ParquetWriter | None = None

    def append(self, batch: TokenBatch) -> None:
        """Encodes and adds rows. Raises SpecError when the batch does not fit the shard, InputError for bad ids."""
        self._check(batch)
        self._raw_bytes += batch.raw_bytes
        self._held.append(replace(batch, columns=self._dense(batch.columns)))
        held = sum(len(part.keys) for part in self._held)
        if ready := held - held % self._group:
            self._encode_held(ready)
        while cut := self._next_cut():
            self._flush(cut)

    def close(self, rejects_sha256: str | None = None) -> ShardEntry | None:
        """Writes the rest and the footer; the shard's manifest entry, or None (and no file) if there are no rows.

        ``rejects_sha256``: hash of the rejects file that belongs to the shard, if the unit had any rejects.
        """
        if held := sum(len(part.keys) for part in self._held):
            self._encode_held(held)
        while self._pending_rows:
            self._flush(self._next_cut() or self._pending_rows)
        if not self._rows:
            self.abort()
            return None
        assert self._grid is not None
        footer = ShardFooter(
            columns=self.columns.model_copy(update={"grid": self._grid}),
            tokenizer=self.tokenizer,
            totals=ShardTotals(
                rows=self._rows, ids=self._ids, raw_bytes=self._raw_bytes, rejects_sha256=rejects_sha256
            ),
        )
        assert self._file is not None
        self._file.add_key_value_metadata(footer.dump())
        self._file.close()
        with open(self.path, "rb") as file:
            return describe_shard(file, self.name)

    def abort(self) -> None:
        """Closes and removes the file."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()

    @property
    def _pending_rows(self) -> int:
        return len(self._stream_bytes)

    def _check(self, batch: TokenBatch) -> None:
        rows, rank = len(batch.keys), self.columns.rank
        if batch.sizes.shape != (rows, rank) or len(batch.ids) != len(self.codecs):
            raise SpecError(f"{self.name}: a batch needs sizes [{rows}, {rank}] and ids of {len(self.codecs)} levels")
        grids = self.columns.grids(batch.sizes)
        tokens = sample_sizes(grids)
        if any(ids.shape != (tokens.sum(),) for ids in batch.ids):
            raise SpecError(f"{self.name}: the ids of a batch do not fill its token grids")
        columns = self.columns
        fixed = [(axis, dim) for axis, dim in enumerate(columns.grid) if dim is not None and not columns.extents]
        if any((grids[:, axis] != dim).any() for axis, dim in fixed):
            raise SpecError(f"{self.name}: rows have another grid than the shard's {list(columns.grid)}")
        given = batch.columns.num_rows if batch.columns is not None else rows
        if given != rows:
            raise SpecError(f"{self.name}: {given} rows of user columns for {rows} keys")

    def _dense(self, given: pa.Table | None) -> pa.Table | None:
        """User columns with the types of the shard."""
        wanted = self._user_schema
        names = given.column_names if given is not None else []
        if sorted(names) != sorted(wanted.names):
            raise SpecError(f"{self.name}: user columns are {sorted(names)} instead of {sorted(wanted.names)}")
        if given is None or not wanted.names:
            return None
        try:
            return given.select(wanted.names).cast(wanted)
        except pa.ArrowInvalid as error:
            raise SpecError(f"{self.name}: user columns do not have the announced types: {error}") from error

    def _encode_held(self, rows: int) -> None:
        """Encodes the first ``rows`` held rows, a multiple of the codec group except at the end of the shard."""
        batch = _joined(self._held)
        ready, rest = _split(batch, self.columns, rows) if rows < len(batch.keys) else (batch, None)
        self._held = [rest] if rest is not None else []
        grids = self.columns.grids(ready.sizes)
        tokens = sample_sizes(grids)
        arrays: dict[str, pa.Array] = {
            KEY: pa.array(ready.keys, pa.string()),
            NUM_TOKENS: pa.array(tokens.astype(np.int32)),
        }
        arrays |= {name: pa.array(ready.sizes[:, axis]) for axis, name in enumerate(self.columns.extents)}
        sizes = np.zeros(rows, np.int64)
        before: Ids | None = None
        for spec, codec, ids in zip(self.columns.codes, self.codecs, ready.ids, strict=True):
            data, lengths = codec.encode(ids, grids, before if codec.needs_earlier else None)
            before = ids
            if len(data) > MAX_CHUNK_BYTES:
                raise SpecError(f"{self.name}: one batch encodes to {len(data)} bytes; append smaller batches")
            if is_list(self.schema, spec):
                arrays[spec.column] = _id_lists(data, lengths, self.schema.field(spec.column).type)
            else:
                arrays[length_name(spec)] = pa.array(lengths)
                arrays[spec.column] = _binary(data, lengths)
            sizes += lengths
        if ready.columns is not None:
            arrays |= {name: ready.columns[name].combine_chunks() for name in ready.columns.column_names}
        for name in self.columns.streams:
            sizes += pc.binary_length(arrays[name]).fill_null(0).to_numpy(zero_copy_only=False)
        self._pending.append(pa.table(arrays, schema=self.schema))
        self._stream_bytes = np.concatenate([self._stream_bytes, sizes])
        self._ids += int(tokens.sum()) * len(self.codecs)
        self._grid = _shared_grid(self._grid, grids)

    def _next_cut(self) -> int:
        """Rows of the next row group, or 0 if more rows are needed; depends on the rows alone."""
        total = np.cumsum(self._stream_bytes)
        if not self._group_rows:
            reached = int(np.searchsorted(total, self._target)) + 1
            if min(reached, MAX_GROUP_ROWS) > len(total):
                return 0
            nearest = 1 << round(math.log2(min(reached, MAX_GROUP_ROWS)))
            self._group_rows = max(nearest, MIN_GROUP_ROWS)
        fitting = int(np.searchsorted(total, MAX_GROUP_BYTES, "right"))
        if fitting < min(self._group_rows, len(total)):
            return max(self._group, fitting - fitting % self._group)
        return self._group_rows if len(total) >= self._group_rows else 0

    def _plain_lists(self, group: pa.Table) -> list[str]:
        """Columns of ids that are smaller without a dictionary, by the first row group."""
        lists = [spec.column for spec in self.columns.codes if is_list(self.schema, spec)]
        return [name for name in lists if not ZstdCodec.prefers_dictionary(_flat_ids(group[name]))]

    def _flush(self, rows: int) -> None:
        if self._row_groups == MAX_ROW_GROUPS:
            raise SpecError(f"{self.name}: more than {MAX_ROW_GROUPS} row groups; use smaller work units")
        table = pa.concat_tables(self._pending)
        group = table.slice(0, rows).combine_chunks()
        if self._file is None:
            options = parquet_options(self.schema, self.columns, self._plain_lists(group))
            self._file = pq.ParquetWriter(str(self.path), self.schema, **options)
        self._file.write_table(group, row_group_size=rows)
        rest = table.slice(rows)
        self._pending = [rest.combine_chunks()] if rest.num_rows else []
        self._stream_bytes = self._stream_bytes[rows:]
        self._rows += rows
        self._row_groups += 1


def parquet_options(schema: pa.Schema, columns: CodeColumns, plain_lists: Sequence[str] = ()) -> dict[str, object]:
    """Writer options of pyarrow for a shard of this schema; ``plain_lists``: columns of ids without a dictionary."""
    binary = [spec for spec in columns.codes if not is_list(schema, spec)]
    streams, lengths = [spec.column for spec in binary], [length_name(spec) for spec in binary]
    leaves = _leaves(schema)
    sizes = {NUM_TOKENS, *columns.extents, *lengths, *(spec.column for spec in columns.codes)}
    plain, lists = {*streams, *lengths, *columns.streams}, {spec.column for spec in columns.codes} - {*streams}
    return {
        "version": "2.6",
        "data_page_version": "1.0",
        # chunks have one page: an index of pages would repeat what the footer says
        "write_page_index": False,
        "write_page_checksum": True,
        "store_schema": True,
        "compression": {leaf: "none" if leaf in plain else "zstd" for leaf in leaves},
        "compression_level": {
            leaf: LIST_LEVEL if leaf.split(".")[0] in lists else ZSTD_LEVEL for leaf in leaves if leaf not in plain
        },
        "use_dictionary": [leaf for leaf in leaves if leaf.split(".")[0] not in {*plain, *plain_lists, KEY}],
        "column_encoding": {KEY: "DELTA_BYTE_ARRAY"}
        | dict.fromkeys(lengths, "DELTA_BINARY_PACKED")
        | dict.fromkeys((*streams, *columns.streams), "DELTA_LENGTH_BYTE_ARRAY"),
        "write_statistics": [leaf for leaf in leaves if leaf.split(".")[0] not in {*sizes, *columns.streams}],
        # one data page a column chunk: the streams are then the tail of the chunk
        "data_page_size": 1 << 30,
        "max_rows_per_page": MAX_CHUNK_BYTES,
        "write_batch_size": MAX_GROUP_ROWS,
    }


def _leaves(schema: pa.Schema) -> list[str]:
    """Dotted paths of the Parquet columns of a schema."""
    file = io.BytesIO()
    pq.write_table(schema.empty_table(), file)
    parquet = open_parquet(file).schema
    return [parquet.column(position).path for position in range(len(parquet))]


def _joined(batches: list[TokenBatch]) -> TokenBatch:
    if len(batches) == 1:
        return batches[0]
    tables = [batch.columns for batch in batches if batch.columns is not None]
    return TokenBatch(
        keys=[key for batch in batches for key in batch.keys],
        sizes=np.concatenate([batch.sizes for batch in batches]),
        ids=tuple(np.concatenate(parts) for parts in zip(*(batch.ids for batch in batches), strict=True)),
        raw_bytes=0,
        columns=pa.concat_tables(tables) if tables else None,
    )


def _split(batch: TokenBatch, columns: CodeColumns, rows: int) -> tuple[TokenBatch, TokenBatch]:
    tokens = int(sample_sizes(columns.grids(batch.sizes[:rows])).sum())
    table = batch.columns
    return (
        TokenBatch(
            keys=batch.keys[:rows],
            sizes=batch.sizes[:rows],
            ids=tuple(ids[:tokens] for ids in batch.ids),
            raw_bytes=0,
            columns=table.slice(0, rows) if table is not None else None,
        ),
        TokenBatch(
            keys=batch.keys[rows:],
            sizes=batch.sizes[rows:],
            ids=tuple(ids[tokens:] for ids in batch.ids),
            raw_bytes=0,
            columns=table.slice(rows) if table is not None else None,
        ),
    )


def _offsets(lengths: Lengths) -> NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _binary(data: Bytes, lengths: Lengths) -> pa.Array:
    buffers = [None, pa.py_buffer(_offsets(lengths)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.binary(), len(lengths), buffers)


def _id_lists(data: Bytes, lengths: Lengths, kind: pa.ListType) -> pa.Array:
    width = kind.value_type.bit_width // 8
    values = pa.array(data.view(f"<u{width}"))
    return pa.ListArray.from_arrays(pa.array(_offsets(lengths // width)), values, type=kind)


def _flat_ids(lists: pa.ChunkedArray) -> Ids:
    ids: Ids = lists.combine_chunks().flatten().to_numpy()
    return ids


def _shared_grid(known: tuple[int | None, ...] | None, grids: NDArray[np.int32]) -> tuple[int | None, ...]:
    """Per axis the dim that all rows so far share, or None."""
    if known is None:
        known = tuple(int(dim) for dim in grids[0])
    return tuple(
        dim if dim is not None and bool((grids[:, axis] == dim).all()) else None for axis, dim in enumerate(known)
    )
