"""Keys and columns beside formats that hold ids alone: `<split>.columns.parquet`, a row a sample, in their order."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.shards.export.base import Batch, Contents, Output, reserved
from tokenshard.shards.schema import KEY


def columns_name(split: str) -> str:
    return f"{split}.columns.parquet"


class ColumnsFile:
    """Writes it batch by batch."""

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        reserved(contents, [KEY])
        self._output, self._name = output, columns_name(split)
        self._schema = pa.schema([pa.field(KEY, pa.string(), nullable=False), *contents.schema])
        self._file = output.create()
        self._writer = pq.ParquetWriter(
            self._file, self._schema, version="2.6", compression="zstd", write_page_checksum=True
        )

    def add(self, batch: Batch) -> None:
        table = pa.table([pa.array(batch.keys, pa.string()), *batch.columns.columns], schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        self._writer.close()
        self._output.put(self._name, self._file)
