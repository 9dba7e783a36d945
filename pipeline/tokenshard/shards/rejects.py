"""Rejects files: one row for every input that could not be read or encoded, instead of a failed job.

Written by a work unit beside its shard; like a shard, name and bytes depend on the unit alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.parquet import read_parquet
from tokenshard.shards.bounds import damage_reported, require
from tokenshard.spec.manifest import Manifest, RejectsEntry
from tokenshard.store import Store

REJECTS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),  # plan | fetch | decode | encode | worker
        pa.field("error", pa.string(), nullable=False),  # error type, e.g. UnidentifiedImageError
        pa.field("message", pa.string(), nullable=False),
        pa.field("traceback_sha256", pa.string()),
        pa.field("unit", pa.int64(), nullable=False),
    ]
)


def rejects_bytes(rows: Sequence[Mapping[str, str | int | None]]) -> bytes:
    """A rejects file of these rows (keys as in :data:`REJECTS_SCHEMA`), in the given order: equal rows, equal bytes."""
    file = io.BytesIO()
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=REJECTS_SCHEMA)
    pq.write_table(table, file, version="2.6", data_page_version="1.0", compression="zstd", write_page_checksum=True)
    return file.getvalue()


def describe_rejects(data: bytes, name: str) -> RejectsEntry:
    """The manifest entry of a rejects file with this content. Raises FormatError when it is damaged."""
    return RejectsEntry(path=name, rows=_parse(data, name).num_rows, bytes=len(data), sha256=_sha256(data))


def read_rejects_file(store: Store, entry: RejectsEntry) -> pa.Table:
    """The rows of one rejects file. Raises FormatError when it differs from its manifest entry."""
    where = store.url(entry.path)
    with damage_reported(where):
        data = store.read(entry.path, 0, entry.bytes + 1)
        require(_sha256(data) == entry.sha256, "damaged (SHA-256 differs)")
    table = _parse(data, where)
    with damage_reported(where):
        require(table.num_rows == entry.rows, f"{table.num_rows} rows instead of {entry.rows}")
    return table


def read_rejects(store: Store, manifest: Manifest) -> pa.Table:
    """All rejects of a dataset."""
    tables = [read_rejects_file(store, entry) for entry in manifest.rejects]
    return pa.concat_tables(tables) if tables else REJECTS_SCHEMA.empty_table()


def _parse(data: bytes, where: str) -> pa.Table:
    with damage_reported(where):
        table = read_parquet(data)
        return table.select(REJECTS_SCHEMA.names).cast(REJECTS_SCHEMA)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
