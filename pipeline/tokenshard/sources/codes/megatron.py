"""Megatron-LM's indexed datasets: `<name>.idx` with the lengths and places of the sequences in `<name>.bin`.

A sequence is a sample. The layout is described in `shards/export/megatron.py`; a trailing array of modes, as
multimodal datasets have it, is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.shards.export.columns_file import columns_name
from tokenshard.shards.export.megatron import DTYPE_CODES, HEADER, MAGIC, VERSION
from tokenshard.sources.codes.base import CodeFiles, Load, Record
from tokenshard.sources.codes.blocks import Block, blocks
from tokenshard.sources.codes.columns_file import ColumnsFile, no_columns
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.plan import Input
from tokenshard.spec.codes import ImportSourceSpec

_ROWS = 1 << 15
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in DTYPE_CODES.items()}


@dataclass(frozen=True)
class _Index:
    """An index file, its arrays not yet read."""

    name: str
    dtype: np.dtype[Any]
    count: int
    columns: ColumnsFile | None

    @property
    def data(self) -> str:
        return f"{self.name.removesuffix('.idx')}.bin"


class MegatronSource(CodeFiles):
    """`.idx` and `.bin` files; keys and columns from `<name>.columns.parquet` where an export wrote it."""

    format = "megatron"
    flat = True

    def fields(self) -> list[pa.Field]:
        fields = {
            field.name: field for index in self._indexes for field in (index.columns.fields if index.columns else ())
        }
        return list(fields.values())

    def records(self) -> Iterator[Record]:
        for index in self._indexes:
            uri = escape_name(index.data)
            named = index.columns.rows() if index.columns else no_columns(uri, index.count)
            for starts, sizes in self._places(index):
                ranges = list(zip(starts, sizes, strict=True))
                near = blocks(self.store, index.data, ranges) if self.looks else iter([None] * len(ranges))
                for (start, size), block in zip(ranges, near, strict=True):
                    key, meta = next(named)
                    codes = None if block is None else np.frombuffer(block.bytes(start, size), index.dtype)
                    yield Record(Input(key, uri, start, size, meta=meta), codes)

    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        name = unescape_name(uri)
        dtype = self._header(f"{name.removesuffix('.bin')}.idx")[0]
        ranges = [(row.offset or 0, row.bytes or 0) for row in rows]
        for (start, size), block in zip(ranges, blocks(self.store, name, ranges), strict=True):
            yield partial(_ids, block, start, size, dtype)

    @cached_property
    def _indexes(self) -> list[_Index]:
        names = [entry.name for entry in self.files.list()]
        if self.files.what == "file":  # either of the two
            names = [f"{name.removesuffix('.idx').removesuffix('.bin')}.idx" for name in names]
        found = []
        for name in (name for name in names if name.endswith(".idx")):
            dtype, count = self._header(name)
            beside = columns_name(name.removesuffix(".idx"))
            columns = ColumnsFile(self.store, beside, count) if self.store.exists(beside) else None
            found.append(_Index(name, dtype, count, columns))
        if not found:
            raise self.error("no .idx files found; check the path")
        return found

    def _header(self, name: str) -> tuple[np.dtype[Any], int]:
        """Dtype and number of the sequences. Raises FormatError where the file is none or too short."""
        try:
            data, size = self.store.read(name, 0, HEADER.size), self.store.size(name)
        except FileNotFoundError as error:
            raise self.damaged(name, "the file is missing") from error
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise self.damaged(name, "no index of Megatron-LM (it does not begin with MMIDIDX)")
        _, version, code, count, documents = HEADER.unpack(data)
        if version != VERSION:
            raise FormatError(f"{self.store.url(name)}: version {version} of the index; only {VERSION} is known")
        if code not in _DTYPES:
            raise self.damaged(name, f"dtype code {code} does not stand for integers")
        if HEADER.size + 12 * count + 8 * documents > size:
            raise self.damaged(name, f"{size} bytes are too few for {count} sequences and {documents} documents")
        return _DTYPES[code], count

    def _places(self, index: _Index) -> Iterator[tuple[list[int], list[int]]]:
        """(first byte, bytes) of the sequences, some at a time."""
        try:
            end = self.store.size(index.data)
        except FileNotFoundError as error:
            raise self.damaged(index.data, "the file is missing") from error
        for first in range(0, index.count, _ROWS):
            count = min(_ROWS, index.count - first)
            lengths = self._array(index.name, HEADER.size + 4 * first, count, "<i4").astype(np.int64)
            starts = self._array(index.name, HEADER.size + 4 * index.count + 8 * first, count, "<i8")
            sizes = lengths * index.dtype.itemsize
            if (lengths < 0).any() or (starts < 0).any() or (starts > end - sizes).any():
                raise self.damaged(index.name, f"sequences lie outside {index.data} ({end} bytes)")
            yield starts.tolist(), sizes.tolist()

    def _array(self, name: str, offset: int, count: int, dtype: str) -> NDArray[Any]:
        data = self.store.read(name, offset, count * np.dtype(dtype).itemsize)
        if len(data) != count * np.dtype(dtype).itemsize:
            raise self.damaged(name, "the file is cut off")
        return np.frombuffer(data, dtype)


def _ids(block: Block, start: int, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(block.bytes(start, size), dtype)


def open_megatron_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> MegatronSource:
    """Ids in Megatron-LM's indexed datasets."""
    return MegatronSource(spec, storage, state)
