"""Megatron-LM's indexed dataset: `<split>.bin` with all ids back to back, `<split>.idx` with their lengths and places.

Layout of the index (little-endian): `MMIDIDX\\0\\0`, u64 version 1, u8 dtype (8: uint16, 4: int32), u64 sequences,
u64 documents + 1; then int32 lengths, int64 byte offsets, int64 first sequence of each document and the end. Every
sample is a sequence and a document: its levels one after the other, each grid in C order. Source: Megatron-LM,
`megatron/core/datasets/indexed_dataset.py`.
"""

from __future__ import annotations

import shutil
import struct

import numpy as np

from tokenshard.shards.export.base import Batch, Contents, Output, SplitWriter, reserved
from tokenshard.shards.export.columns_file import ColumnsFile
from tokenshard.shards.schema import KEY

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
HEADER = struct.Struct("<9sQBQQ")
_BLOCK = 1 << 16


class MegatronWriter(SplitWriter):
    """Ids, lengths and keys go to files as they come; the index is put together at the end."""

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        super().__init__(contents, output, split)
        self._ids, self._lengths, self._rows = output.create(), output.create(), 0
        self._columns = ColumnsFile(contents, output, split)

    @classmethod
    def check(cls, contents: Contents) -> None:
        reserved(contents, [KEY])

    def add(self, batch: Batch) -> None:
        for sample in batch.codes:
            self._ids.write(np.ascontiguousarray(sample, np.dtype(self.contents.dtype).newbyteorder("<")).tobytes())
        self._lengths.write(np.array([sample.size for sample in batch.codes], "<i4").tobytes())
        self._rows += len(batch)
        self._columns.add(batch)

    def close(self) -> None:
        dtype = np.dtype(self.contents.dtype)
        index = self.output.create()
        index.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[dtype.name], self._rows, self._rows + 1))
        self._lengths.seek(0)
        shutil.copyfileobj(self._lengths, index)
        self._lengths.seek(0)
        start = 0
        while block := self._lengths.read(4 * _BLOCK):
            ends = np.cumsum(np.frombuffer(block, "<i4"), dtype=np.int64) * dtype.itemsize + start
            index.write(np.concatenate([[start], ends[:-1]]).astype("<i8").tobytes())
            start = int(ends[-1])
        for first in range(0, self._rows + 1, _BLOCK):
            index.write(np.arange(first, min(first + _BLOCK, self._rows + 1), dtype="<i8").tobytes())
        self._lengths.close()
        self._columns.close()
        self.output.put(f"{self.split}.bin", self._ids)
        self.output.put(f"{self.split}.idx", index)
