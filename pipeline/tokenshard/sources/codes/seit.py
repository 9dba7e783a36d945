"""SeiT's token files: one gzip stream of ids, an index of where each sample begins in it, and labels.

The layout is described in `shards/export/seit.py`. The codebook is read with `torch.load(weights_only=True)`, the
synonyms from JSON; both go into the dataset as tensors beside the ids. A gzip stream has no random access: each unit
reads it from the front, or from where the unit before it on the same worker stopped.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import JsonValue

from tokenshard.errors import InputError
from tokenshard.shards.export.base import DEFAULT_SPLIT, SPLIT
from tokenshard.shards.export.columns_file import columns_name
from tokenshard.shards.export.gzip_stream import MAX_HEADER, header_of
from tokenshard.shards.export.seit import ESCAPE, Packing
from tokenshard.sources.codes.arrays import read_header
from tokenshard.sources.codes.base import CodeFiles, Load, Record
from tokenshard.sources.codes.columns_file import ColumnsFile, no_columns
from tokenshard.sources.images.tables import buffered
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.plan import Input
from tokenshard.spec.codec import MAX_ALPHABET
from tokenshard.spec.codes import ImportSourceSpec

TOKENS = "token.data.bin.gz"
MAX_INDEX_BYTES = 1 << 32
MAX_SAMPLE_BYTES = 1 << 24
MAX_SIDE_FILE = 1 << 30
_GZIP_ERRORS = (OSError, EOFError, zlib.error)
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}")


@dataclass(frozen=True)
class _Split:
    """The files of one split, found and checked against each other."""

    name: str
    data: str
    packing: Packing
    starts: NDArray[np.int64]
    """[n + 1]"""
    labels: NDArray[np.int64] | None
    columns: ColumnsFile | None


class SeitSource(CodeFiles):
    """`<split>-token.data.bin.gz` files and what belongs to them."""

    format = "seit"
    flat = True
    _stream: _Stream | None = None
    """the one that was read last"""

    def fields(self) -> list[pa.Field]:
        fields = {
            field.name: field for split in self._splits for field in (split.columns.fields if split.columns else ())
        }
        if not fields:
            fields = {SPLIT: pa.field(SPLIT, pa.string())}
            if any(split.labels is not None for split in self._splits):
                fields |= {"label": pa.field("label", pa.int64())}
        return list(fields.values())

    def records(self) -> Iterator[Record]:
        for split in self._splits:
            uri, count = escape_name(split.data), len(split.starts) - 1
            named = split.columns.rows() if split.columns else no_columns(uri, count)
            stream = _Stream(self, split.data) if self.looks else None
            for number, (key, meta) in enumerate(named):
                start, end = int(split.starts[number]), int(split.starts[number + 1])
                if split.columns is None:
                    meta = {SPLIT: split.name}
                    meta |= {} if split.labels is None else {"label": int(split.labels[number])}
                row = Input(key, uri, start, end - start, number, meta=meta)
                yield self._record(row, stream.read(start, end - start)) if stream else Record(row)

    def _record(self, row: Input, data: bytes) -> Record:
        try:
            return Record(row, seit_ids(data))
        except InputError as error:
            return Record(Input(row.key, row.uri, row.offset, row.bytes, row.index, f"InputError: {error}", row.meta))

    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        name = unescape_name(uri)
        for row in rows:
            start = row.offset or 0
            if self._stream is None or self._stream.name != name or self._stream.position > start:
                self._stream = _Stream(self, name)
            yield partial(seit_ids, self._stream.read(start, row.bytes or 0))

    def shaped(self, codes: NDArray[Any], row: Input) -> NDArray[Any]:
        if self.spec.grid is None and self.described is None:
            side = math.isqrt(codes.size)
            if side * side != codes.size:
                raise InputError(f"{codes.size} ids are no square; give their token grid with `grid`")
            return codes.reshape(1, side, side)
        return super().shaped(codes, row)

    def origin(self) -> dict[str, JsonValue]:
        return {**super().origin(), "seit": {split.name: split.packing.dump() for split in self._splits}}

    def tensors(self) -> dict[str, NDArray[Any]]:
        """`codebook` float32 [codes, dim]; `synonyms` int32 [codes, most], -1 where a code has fewer."""
        found = {} if self._codebook is None else {"codebook": self._codebook}
        synonyms = self._synonyms()
        return found if synonyms is None else {**found, "synonyms": synonyms}

    def declared_alphabets(self) -> tuple[int, ...] | None:
        return None if self._codebook is None else (len(self._codebook),)

    # -- the files ----------------------------------------------------------------------------------------------------

    @cached_property
    def _splits(self) -> list[_Split]:
        names = [entry.name for entry in self.files.list() if entry.name.endswith(TOKENS)]
        if not names:
            raise self.error(f"no files …{TOKENS} found; check the path")
        return [self._split(name) for name in names]

    def _split(self, name: str) -> _Split:
        stem = name.removesuffix(TOKENS).removesuffix("-")
        index = f"{name.removesuffix('data.bin.gz')}index.npy.gz"
        starts, dtype = self._starts(index)
        count = len(starts) - 1
        label = f"{name.removesuffix(TOKENS)}label.txt"
        labels = None
        if self.spec.labels != "none" and self.store.exists(label):
            labels = self._labels(label, count)
        beside = columns_name(stem)
        columns = ColumnsFile(self.store, beside, count) if self.store.exists(beside) else None
        packing = Packing(self._header(name), self._header(index), dtype)
        return _Split(stem.rpartition("/")[2] or DEFAULT_SPLIT, name, packing, starts, labels, columns)

    def _header(self, name: str) -> bytes:
        try:
            return header_of(self.store.read(name, 0, MAX_HEADER))
        except ValueError as error:
            raise self.damaged(name, str(error)) from error

    def _starts(self, name: str) -> tuple[NDArray[np.int64], str]:
        """int64 [n + 1], where each sample begins, and the end; and the dtype that the file has."""
        try:
            with self._gzip(name) as file:
                shape, _, dtype = read_header(file)
                if len(shape) != 1 or shape[0] < 1 or dtype.kind not in "iu" or shape[0] * 8 > MAX_INDEX_BYTES:
                    raise ValueError(f"an array of {dtype} and shape {list(shape)}")
                pieces, left = [], shape[0] * dtype.itemsize
                while left and (piece := file.read(min(left, 1 << 20))):  # no more memory than there are bytes
                    pieces.append(piece)
                    left -= len(piece)
            starts = np.frombuffer(b"".join(pieces), dtype).astype(np.int64)
        except FileNotFoundError as error:
            raise self.damaged(name, "the file is missing") from error
        except (*_GZIP_ERRORS, ValueError) as error:
            raise self.damaged(name, f"no readable index ({error})") from error
        if len(starts) != shape[0] or starts[0] != 0 or (np.diff(starts) < 0).any():
            raise self.damaged(name, "not an index: offsets must begin with 0 and never fall")
        if (np.diff(starts) > MAX_SAMPLE_BYTES).any():
            raise self.damaged(name, f"a sample of more than {MAX_SAMPLE_BYTES} bytes")
        return starts, dtype.str

    def _labels(self, name: str, count: int) -> NDArray[np.int64]:
        labels = []
        with io.TextIOWrapper(buffered(self.store, name), "utf-8", "replace") as file:
            for number, line in enumerate(file, 1):
                if not _WHOLE_NUMBER.fullmatch(line.strip()):
                    raise self.damaged(f"{name}:{number}", f"{line.strip()[:40]!r} is no whole number")
                labels.append(int(line))
        if len(labels) != count:
            raise self.damaged(name, f"{len(labels)} labels for {count} samples")
        return np.array(labels, np.int64)

    @cached_property
    def _codebook(self) -> NDArray[np.float32] | None:
        name = "codebook.ckpt"
        if not self.store.exists(name):
            return None
        if self.store.size(name) > MAX_SIDE_FILE:
            raise self.damaged(name, f"more than {MAX_SIDE_FILE} bytes")
        import torch

        try:
            tensor = torch.load(io.BytesIO(self.store.read(name)), map_location="cpu", weights_only=True)
            codebook = np.asarray(tensor.detach().float().numpy(), np.float32)
        except Exception as error:  # torch's readers raise almost anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise self.damaged(name, f"not a tensor that torch.load(weights_only=True) reads ({reason})") from error
        if codebook.ndim != 2 or not 1 <= len(codebook) <= MAX_ALPHABET:
            raise self.damaged(name, f"a tensor of shape {list(codebook.shape)} instead of [codes, dim]")
        return codebook

    def _synonyms(self) -> NDArray[np.int32] | None:
        name = "synonyms.json"
        if not self.store.exists(name):
            return None
        if self.store.size(name) > MAX_SIDE_FILE:
            raise self.damaged(name, f"more than {MAX_SIDE_FILE} bytes")
        try:
            listed = {
                int(code): [int(other) for other in others]
                for code, others in json.loads(self.store.read(name)).items()
            }
            count, most = max(listed) + 1, max(len(others) for others in listed.values())
            if min(listed) < 0 or count > MAX_ALPHABET or count * most > MAX_SIDE_FILE:
                raise ValueError(f"codes from {min(listed)} to {count - 1}, of up to {most} synonyms")
            table = np.full((count, most), -1, np.int32)
            for code, others in listed.items():
                table[code, : len(others)] = others
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise self.damaged(name, f"no table of synonyms ({error})") from error
        return table

    def _gzip(self, name: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=buffered(self.store, name)), 1 << 20))


class _Stream:
    """The gzip stream of a split, read front to back."""

    def __init__(self, source: SeitSource, name: str) -> None:
        self.name, self.position, self._source = name, 0, source
        self._file = source._gzip(name)

    def read(self, start: int, size: int) -> bytes:
        """The bytes of a sample. Raises FormatError where the stream is damaged or ends before."""
        try:
            while self.position < start:
                skipped = self._file.read(min(1 << 20, start - self.position))
                if not skipped:
                    raise EOFError(f"it ends after {self.position} bytes")
                self.position += len(skipped)
            data = self._file.read(size)
        except _GZIP_ERRORS as error:
            raise self._source.damaged(self.name, f"damaged gzip stream ({error})") from error
        self.position += len(data)
        if len(data) != size:
            raise self._source.damaged(self.name, f"it ends after {self.position} bytes, before the index says")
        return data


def seit_ids(data: bytes) -> NDArray[np.uint16]:
    """The ids of a sample's bytes. Raises InputError for an escape without a byte that belongs to it."""
    values = np.frombuffer(data, np.uint8)
    escapes = values == ESCAPE
    if escapes.any() and (escapes[-1] or (escapes[1:] & escapes[:-1]).any()):
        raise InputError("an escape byte (255) without a byte behind it that it belongs to")
    ids = values.astype(np.uint16)
    ids[1:] += escapes[:-1] * np.uint16(ESCAPE)
    kept: NDArray[np.uint16] = ids[~escapes]
    return kept


def open_seit_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> SeitSource:
    """Ids in SeiT's token files."""
    return SeitSource(spec, storage, state)
