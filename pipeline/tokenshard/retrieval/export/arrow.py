"""Vectors in half precision as an Arrow column that LanceDB and others read: list<fixed_size_list<float16, d>>.

`vectors` are Parquet files, `lance` is a table in Lance's own format, written by its own library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.errors import SpecError
from tokenshard.retrieval.exact import Multivectors
from tokenshard.retrieval.export.pages import ExportedPages, PageBatch, PageWriter
from tokenshard.shards.export.base import SHARD_BYTES, Output, byte_size
from tokenshard.shards.schema import KEY

VECTORS = "vectors"


class VectorsWriter(PageWriter):
    """`pages-00000.parquet`, …: `key`, `vectors`, and the columns of the pages."""

    def __init__(self, pages: ExportedPages, output: Output) -> None:
        super().__init__(pages, output)
        self._schema = _schema(pages)
        self._limit = byte_size(output.options.get("shard_bytes", SHARD_BYTES))
        self._file: BinaryIO | None = None
        self._writer: pq.ParquetWriter | None = None
        self._files = self._held = 0

    def add(self, batch: PageBatch) -> None:
        table = _table(batch, self._schema)
        if self._writer is None:
            self._file = self.output.create()
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd", use_dictionary=False)
        self._writer.write_table(table)
        self._held += table.nbytes
        if self._held >= self._limit:
            self.close()

    def close(self) -> None:
        if self._writer is None or self._file is None:
            return
        self._writer.close()
        self.output.put(f"pages-{self._files:05d}.parquet", self._file)
        self._writer, self._file, self._held = None, None, 0
        self._files += 1


class LanceWriter(PageWriter):
    """`pages.lance`, a table that ``lancedb.connect(DST).open_table("pages")`` opens."""

    def __init__(self, pages: ExportedPages, output: Output) -> None:
        super().__init__(pages, output)
        self._library: Any = _lance()
        self._schema = _schema(pages)
        self._folder = Path(output.scratch) / "pages.lance"

    def add(self, batch: PageBatch) -> None:
        mode = "append" if self._folder.exists() else "create"
        self._library.write_dataset(_table(batch, self._schema), str(self._folder), mode=mode)

    def close(self) -> None:
        if not self._folder.exists():
            self._library.write_dataset(self._schema.empty_table(), str(self._folder))
        self.output.put_folder(self._folder, "pages.lance")


def read_vectors(table: pa.Table) -> Multivectors:
    """The vectors of an exported table, float32 [N, d], a page a row."""
    column = table[VECTORS].combine_chunks()
    ends = column.offsets.to_numpy().astype(np.int64)
    inner = column.values
    flat = inner.values.to_numpy(zero_copy_only=False).reshape(-1, inner.type.list_size)
    return Multivectors(flat[ends[0] : ends[-1]].astype(np.float32), ends - ends[0])


def _schema(pages: ExportedPages) -> pa.Schema:
    if taken := sorted({KEY, VECTORS} & set(pages.schema.names)):
        raise SpecError(f"the column {taken[0]!r} has a name this format uses itself; leave it out with --columns")
    kind = pa.list_(pa.list_(pa.float16(), pages.compressor.dimensions))
    return pa.schema([pa.field(KEY, pa.string()), pa.field(VECTORS, kind), *pages.schema])


def _table(batch: PageBatch, schema: pa.Schema) -> pa.Table:
    found = batch.vectors
    flat = pa.array(found.vectors.astype(np.float16).reshape(-1))
    inner = pa.FixedSizeListArray.from_arrays(flat, found.vectors.shape[1])
    vectors = pa.ListArray.from_arrays(pa.array(found.offsets.astype(np.int32)), inner)
    return pa.table([pa.array(batch.keys, pa.string()), vectors, *batch.columns.columns], schema=schema)


def _lance() -> Any:
    try:
        import lance
    except ImportError as error:
        raise SpecError("format lance is written by Lance's own library: pip install pylance") from error
    return lance
