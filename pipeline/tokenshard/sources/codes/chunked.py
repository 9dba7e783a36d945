"""Sample files with a table of offsets at their front, as MDS and LitData have them: u32 count, u32 [count + 1].

Each sample begins with the u32 sizes of its fields that have no fixed size, then come the fields themselves.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.codes.base import CodeFiles, Load, Record, described_fields
from tokenshard.sources.codes.blocks import Block, blocks
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.plan import Input

MAX_INDEX = 1 << 28
MAX_SAMPLE = 1 << 28
MAX_COUNT = 1 << 26


@dataclass(frozen=True)
class Column:
    """A field of the samples of a file."""

    name: str
    decode: Callable[[bytes], Any]
    """raises ValueError or InputError"""
    type: pa.DataType | None
    """None: an array"""
    size: int | None = None
    """bytes, where all samples have as many"""


@dataclass(frozen=True)
class Chunk:
    """A file of samples. ``columns`` in the order of the fields."""

    name: str
    samples: int
    columns: tuple[Column, ...]
    fixed_in_head: bool = field(default=False)
    """whether fields of fixed size have their size written before the sample too"""


class ChunkedSource(CodeFiles):
    """Samples in chunk files that an `index.json` lists."""

    index = "index.json"

    @abstractmethod
    def chunks_of(self, folder: str, document: Mapping[str, Any]) -> Iterator[Chunk]:
        """The files that an index lists; names below the root. May raise KeyError, TypeError or ValueError."""

    # -- what there is ------------------------------------------------------------------------------------------------

    @cached_property
    def _chunks(self) -> dict[str, Chunk]:
        names = [entry.name for entry in self.files.list() if entry.name.rpartition("/")[2] == self.index]
        if self.index in names:
            names = [self.index]  # it lists the chunks of all folders below
        if not names:
            raise self.error(f"no {self.index} found; check the path")
        found = {}
        for name in names:
            folder = name.removesuffix(self.index)
            try:
                document = self._json(name)
                found.update({chunk.name: chunk for chunk in self.chunks_of(folder, document)})
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise self.damaged(
                    name, f"not an index of format {self.format} ({type(error).__name__}: {error})"
                ) from error
        for chunk in found.values():
            parts = chunk.name.split("/")
            if chunk.name.startswith("/") or ".." in parts or "\\" in chunk.name:
                raise self.damaged(chunk.name, "its path leaves the folder")
        return found

    def _json(self, name: str) -> Mapping[str, Any]:
        if self.store.size(name) > MAX_INDEX:
            raise ValueError(f"more than {MAX_INDEX} bytes")
        document = json.loads(self.store.read(name))
        if not isinstance(document, dict):
            raise ValueError("not an object")
        return document

    @cached_property
    def _codes(self) -> str:
        arrays = list(dict.fromkeys(c.name for chunk in self._chunks.values() for c in chunk.columns if c.type is None))
        if self.spec.column is not None:
            if self.spec.column not in arrays:
                raise self.error(f"no array {self.spec.column!r}; arrays are {', '.join(arrays) or 'none'}")
            return self.spec.column
        found = next((name for name in ("codes", "tokens", "input_ids", "ids") if name in arrays), None)
        if found is None and len(arrays) != 1:
            raise self.error(f"cannot tell which field holds the ids: arrays are {', '.join(arrays) or 'none'}")
        return found or arrays[0]

    @property
    def _key(self) -> str:
        return self.spec.key_column or "key"

    def fields(self) -> list[pa.Field]:
        if self.described is not None:
            return described_fields(self.described)
        found: dict[str, pa.Field] = {}
        for chunk in self._chunks.values():
            for column in chunk.columns:
                if column.type is not None and column.name != self._key:
                    found.setdefault(column.name, pa.field(column.name, column.type))
        return list(found.values())

    # -- samples ------------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[Record]:
        names = {field.name for field in self.fields()}
        for chunk in self._chunks.values():
            uri = escape_name(chunk.name)
            ranges = list(self._ranges(chunk))
            for number, ((start, size), block) in enumerate(
                zip(ranges, blocks(self.store, chunk.name, ranges), strict=True)
            ):
                key = f"{uri}/{number:08d}"
                wanted = {*names, self._key, *([self._codes] if self.looks else [])}
                try:
                    values = self._meta(self._values(chunk, block.bytes(start, size), wanted))
                except (InputError, ValueError, TypeError, RecursionError) as error:
                    yield Record(Input(key, uri, error=f"{type(error).__name__}: {error}"))
                    continue
                codes = values.pop(self._codes, None)
                key = str(values.pop(self._key, None) or key)
                yield Record(Input(key, uri, start, size, number, meta=values), codes)

    def _meta(self, values: dict[str, Any]) -> dict[str, Any]:
        return values

    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        chunk = self._chunks[unescape_name(uri)]
        ranges = [(row.offset or 0, row.bytes or 0) for row in rows]
        for (start, size), block in zip(ranges, blocks(self.store, chunk.name, ranges), strict=True):
            yield partial(self._load, chunk, block, start, size)

    def _load(self, chunk: Chunk, block: Block, start: int, size: int) -> NDArray[Any]:
        codes: NDArray[Any] = self._values(chunk, block.bytes(start, size), {self._codes})[self._codes]
        return codes

    def _ranges(self, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """(first byte, bytes) of each sample. Raises FormatError where the offsets do not fit the file."""
        try:
            end = self.store.size(chunk.name)
        except FileNotFoundError as error:
            raise self.damaged(chunk.name, "the file is missing") from error
        head = self.store.read(chunk.name, 0, 4)
        count = int.from_bytes(head, "little")
        if len(head) < 4 or count != chunk.samples or count > MAX_COUNT:
            raise self.damaged(chunk.name, f"{count} samples, the index says {chunk.samples}")
        table = self.store.read(chunk.name, 4, 4 * (count + 1))
        if len(table) != 4 * (count + 1):
            raise self.damaged(chunk.name, "the file is cut off")
        offsets = np.frombuffer(table, "<u4").astype(np.int64)
        sizes = np.diff(offsets)
        if (sizes < 0).any() or int(offsets[-1]) > end or int(offsets[0]) < 4 * (count + 2):
            raise self.damaged(chunk.name, f"samples lie outside the file ({end} bytes)")
        if count and int(sizes.max()) > MAX_SAMPLE:
            raise self.damaged(chunk.name, f"a sample of {int(sizes.max())} bytes ({MAX_SAMPLE} are allowed)")
        return iter(zip(offsets[:-1].tolist(), sizes.tolist(), strict=True))

    def _values(self, chunk: Chunk, data: bytes, wanted: set[str]) -> dict[str, Any]:
        """The wanted fields of a sample. Raises InputError where it is damaged."""
        written = [column for column in chunk.columns if column.size is None or chunk.fixed_in_head]
        head = 4 * len(written)
        if len(data) < head:
            raise InputError("the sample is cut off")
        sizes = iter(np.frombuffer(data[:head], "<u4").tolist())
        values, start = {}, head
        for column in chunk.columns:
            size = next(sizes) if column.size is None or chunk.fixed_in_head else column.size
            if start + size > len(data):
                raise InputError(f"the field {column.name!r} is cut off")
            if column.name in wanted:
                values[column.name] = column.decode(data[start : start + size])
            start += size
        return values
