"""The manifest entry of a shard, rebuilt from the shard file alone: after writing, on resume and on import."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from tokenshard.parquet import open_parquet
from tokenshard.shards.bounds import damage_reported, require
from tokenshard.shards.chunks import Span, column_chunks
from tokenshard.shards.schema import KEY, CodeColumns, ShardFooter, check_layouts, is_list, length_name, size_names
from tokenshard.spec.manifest import ChunkEntry, RowGroupEntry, ShardEntry

BLOCK = 1 << 20
MAGIC = b"PAR1"


def describe_shard(file: BinaryIO, name: str) -> ShardEntry:
    """The entry of the shard file ``file`` whose path in the dataset is ``name``; reads every byte once.

    Raises FormatError when it is not a complete shard.
    """
    with damage_reported(name):
        size = file.seek(0, 2)
        footer = _footer_span(file, size)
        parquet = open_parquet(file)
        described = ShardFooter.parse(parquet.metadata.metadata)
        check_layouts(described.columns, parquet.schema_arrow)
        require(parquet.metadata.num_rows == described.totals.rows > 0, "row counts of the footer differ")
        groups = range(parquet.metadata.num_row_groups)
        file.seek(footer[0])
        chunks_of = column_chunks(file.read(footer[1] - footer[0]))
        spans = [_spans_of_group(parquet, group, chunks_of[group], described.columns) for group in groups]
        keys = [
            pc.min_max(parquet.read_row_group(group, columns=[KEY], use_threads=False)[KEY]).as_py() for group in groups
        ]
        require(all(isinstance(key["min"], str) for key in keys), "rows without a key")
        sha256, chunks = _hashed(file, size, [span for group in spans for span in group] + [footer])
    row_groups = []
    for group in groups:
        sizes, codes = chunks[0], chunks[1 : len(spans[group])]
        chunks = chunks[len(spans[group]) :]
        rows = parquet.metadata.row_group(group).num_rows
        row_groups.append(RowGroupEntry(rows=rows, sizes=sizes, codes=tuple(codes)))
    return ShardEntry(
        path=name,
        rows=described.totals.rows,
        ids=described.totals.ids,
        bytes=size,
        raw_bytes=described.totals.raw_bytes,
        sha256=sha256,
        min_key=min(group["min"] for group in keys),
        max_key=max(group["max"] for group in keys),
        grid=described.columns.grid,
        footer=chunks[-1],
        row_groups=tuple(row_groups),
    )


def group_spans(
    chunks: dict[str, Span], schema: pa.Schema, columns: CodeColumns, stream_bytes: dict[str, int]
) -> list[Span]:
    """Byte ranges of a row group that the manifest lists: sizes, then each code column.

    ``chunks`` are the column chunks of the row group, ``stream_bytes`` the sum of each ``code_len`` column: the
    streams are the tail of their column chunk, which has a single data page.
    """
    names = size_names(columns, schema)
    spans = [(chunks[names[0]][0], chunks[names[-1]][1])]
    neighbours = [*names, *(spec.column for spec in columns.codes)]
    for before, after in itertools.pairwise(neighbours):
        require(chunks[before][1] == chunks[after][0], f"column {after!r} does not follow {before!r} in the file")
    for spec in columns.codes:
        start, end = chunks[spec.column]
        if not is_list(schema, spec):
            streams = stream_bytes[length_name(spec)]
            require(0 <= streams <= end - start, f"{length_name(spec)} does not fit the column {spec.column!r}")
            start = end - streams
        spans.append((start, end))
    return spans


def _spans_of_group(parquet: pq.ParquetFile, group: int, chunks: dict[str, Span], columns: CodeColumns) -> list[Span]:
    schema = parquet.schema_arrow
    names = [length_name(spec) for spec in columns.codes if not is_list(schema, spec)]
    lengths = parquet.read_row_group(group, columns=names, use_threads=False)
    totals = {name: int(pc.sum(lengths[name]).as_py()) for name in names}
    return group_spans(chunks, schema, columns, totals)


def _footer_span(file: BinaryIO, size: int) -> Span:
    """The Parquet metadata with the length and magic behind it."""
    require(size >= 12, f"{size} bytes are no Parquet file")
    file.seek(size - 8)
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little") + 8
    require(tail[4:] == MAGIC and length <= size - 4, "the file is cut off or no Parquet file")
    return size - length, size


def _hashed(file: BinaryIO, size: int, spans: list[Span]) -> tuple[str, list[ChunkEntry]]:
    """SHA-256 of the whole file and the checksummed spans (ascending, disjoint), in one pass."""
    sha256, position, chunks = hashlib.sha256(), 0, []
    file.seek(0)

    def advance(end: int, also: Any = None) -> None:
        nonlocal position
        while position < end:
            block = file.read(min(BLOCK, end - position))
            require(bool(block), "the file is cut off")
            sha256.update(block)
            if also is not None:
                also.update(block)
            position += len(block)

    for start, end in spans:
        require(position <= start, "column chunks overlap")
        advance(start)
        xxh64 = xxhash.xxh64()
        advance(end, xxh64)
        chunks.append(ChunkEntry(offset=start, length=end - start, xxh64=xxh64.hexdigest()))
    advance(size)
    return sha256.hexdigest(), chunks
