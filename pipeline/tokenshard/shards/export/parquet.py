"""Plain Parquet: ids as lists of numbers that any Parquet reader shows. Files of at most `shard_bytes` of ids.

Columns: `key`; `codes` (`codes_0`, `codes_1`, … for several levels), list<uint16> or list<int32>, the token grid in C
order; its sides `grid_height` and `grid_width` (`grid_frames`, `grid_length`); then the columns of the dataset.
"""

from __future__ import annotations

from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenshard.shards.export.base import SHARD_BYTES, Batch, Contents, Output, SplitWriter, byte_size, reserved
from tokenshard.shards.schema import KEY, code_names

GRID_COLUMNS = {
    1: ("grid_length",),
    2: ("grid_height", "grid_width"),
    3: ("grid_frames", "grid_height", "grid_width"),
}
"""Columns with the sides of the token grid, by its rank."""


class ParquetWriter(SplitWriter):
    """`<split>-00000.parquet`, …"""

    options: ClassVar = {"shard_bytes": byte_size}

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        super().__init__(contents, output, split)
        self._limit = output.options.get("shard_bytes", SHARD_BYTES)
        self._schema = self.schema()
        self._files = self._held = 0
        self._file: BinaryIO | None = None
        self._writer: pq.ParquetWriter | None = None

    @classmethod
    def check(cls, contents: Contents) -> None:
        reserved(contents, [KEY, *code_names(contents.levels), *GRID_COLUMNS[len(contents.grid)]])

    def schema(self) -> pa.Schema:
        item = pa.from_numpy_dtype(self.contents.dtype)
        return pa.schema(
            [
                pa.field(KEY, pa.string(), nullable=False),
                *(pa.field(name, pa.list_(item), nullable=False) for name in code_names(self.contents.levels)),
                *(pa.field(name, pa.int32(), nullable=False) for name in GRID_COLUMNS[len(self.contents.grid)]),
                *self.contents.schema,
            ]
        )

    def table(self, batch: Batch) -> pa.Table:
        grids = np.array([sample.shape[1:] for sample in batch.codes], np.int32)
        levels = [as_lists(batch, level) for level in range(self.contents.levels)]
        arrays = [pa.array(batch.keys, pa.string()), *levels, *(pa.array(side) for side in grids.T)]
        return pa.table([*arrays, *batch.columns.columns], schema=self._schema)

    def name(self, number: int) -> str:
        return f"{self.split}-{number:05d}.parquet"

    def add(self, batch: Batch) -> None:
        table = self.table(batch)
        if self._writer is None:
            self._file = self.output.create()
            self._writer = pq.ParquetWriter(
                self._file, self._schema, version="2.6", compression="zstd", write_page_checksum=True
            )
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._held += sum(sample.nbytes for sample in batch.codes)
        if self._held >= self._limit:
            self.close()

    def close(self) -> None:
        if self._writer is None or self._file is None:
            return
        self._writer.close()
        self.put_file(self._file, self._files)
        self._files += 1
        self._writer, self._file, self._held = None, None, 0

    def put_file(self, file: BinaryIO, number: int) -> None:
        self.output.put(self.name(number), file)


def as_lists(batch: Batch, level: int) -> pa.ListArray:
    """Ids of one level of each sample, flat in C order."""
    flat: list[NDArray[Any]] = [sample[level].ravel() for sample in batch.codes]
    offsets = np.cumsum([0, *(len(ids) for ids in flat)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(flat)))
