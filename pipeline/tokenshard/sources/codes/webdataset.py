"""WebDataset tars of ids: `<key>.npy`, with `<key>.cls` for the label and `<key>.json` for the rest.

In tars of others the key is the member's name up to its first dot, and the json member is carried as a column of text.
An uncompressed tar is scanned once at planning, and any worker reads just the bytes it needs; a compressed one is read
through by each unit that has samples of it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.codes.arrays import read_header
from tokenshard.sources.codes.base import CodeFiles, Load, Record, described_fields
from tokenshard.sources.codes.blocks import Block, blocks
from tokenshard.sources.images.tar import TAR_ERRORS, Member, is_compressed, members
from tokenshard.sources.images.webdataset import TAR_NAME
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.outcome import cleaned
from tokenshard.sources.plan import Input
from tokenshard.spec.codes import ImportSourceSpec
from tokenshard.store import Entry

MAX_MEMBER = 1 << 28
"""Bytes of one member that is read."""


@dataclass
class _Sample:
    """Neighbouring members with one key."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    codes: NDArray[Any] | None = None
    error: str | None = None


class WebDatasetSource(CodeFiles):
    """Ids in tar archives."""

    format = "webdataset"

    @cached_property
    def _archives(self) -> list[Entry]:
        named = self.files.what == "file"
        found = [entry for entry in self.files.list() if named or TAR_NAME.search(entry.name)]
        if not found:
            raise self.error("no .tar files found; check the path")
        return found

    def fields(self) -> list[pa.Field]:
        return described_fields(self.described) or [
            pa.field(self._label_column, self._label_type()),
            pa.field("json", pa.string()),
        ]

    def _label_type(self) -> pa.DataType:
        """Of labels that nobody described: numbers, if that of the first labelled sample is one."""
        for entry in self._archives:
            try:
                for sample in self._samples(entry.name):
                    if (label := sample.texts.get(self._label_member)) is not None:
                        return pa.int64() if _integer(label) is not None else pa.string()
            except TAR_ERRORS:
                continue
        return pa.int64()

    def records(self) -> Iterator[Record]:
        for entry in self._archives:
            uri, compressed = escape_name(entry.name), is_compressed(self.store, entry.name)
            try:
                for sample in self._samples(entry.name):
                    yield self._record(uri, sample, compressed)
            except TAR_ERRORS as error:
                raise self.damaged(entry.name, f"damaged archive ({cleaned(str(error))})") from error

    def _record(self, uri: str, sample: _Sample, compressed: bool) -> Record:
        key = escape_name(sample.key)
        member = self._codes_member(sample)
        if sample.error is None and member is None:
            sample.error = f"no .npy among the members {', '.join(sorted(sample.members))}"
        if sample.error is not None or member is None:
            return Record(Input(key, uri, error=sample.error))
        offset, index = (None, member.index) if compressed else (member.offset, None)
        row = Input(key, uri, offset, member.size, index)
        try:
            return Record(self._with_columns(row, sample), sample.codes)
        except (ValueError, RecursionError) as error:
            return Record(replace(row, error=f"ValueError: {error}"))

    def _with_columns(self, row: Input, sample: _Sample) -> Input:
        label, text = sample.texts.get(self._label_member), sample.texts.get("json")
        if self.described is None:
            values: dict[str, Any] = {"json": None if text is None else text.decode()}
            if label is not None:
                text_label = label.decode().strip()
                if self._numbered and _integer(label) is None:
                    raise ValueError(f"the label {text_label[:40]!r} is no whole number, as others are")
                values[self._label_column] = _integer(label) if self._numbered else text_label
            return replace(row, meta=values)
        document = json.loads(text or b"{}")
        if not isinstance(document, dict):
            raise ValueError("the json member is not an object")
        named = next((column.name for column in self.described.columns if column.role == "label"), None)
        if named is not None and label is not None:
            number = _integer(label)
            document[named] = label.decode() if number is None else number
        names = {column.name for column in self.described.columns}
        meta = {name: value for name, value in document.items() if name in names}
        return replace(row, key=str(document.get("key") or row.key), meta=meta)

    @cached_property
    def _numbered(self) -> bool:
        return bool(pa.types.is_integer(self.fields()[0].type))

    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        name = unescape_name(uri)
        if rows and rows[0].offset is None:
            yield from self._streamed(name, rows)
            return
        ranges = [(row.offset or 0, row.bytes or 0) for row in rows]
        for (start, size), block in zip(ranges, blocks(self.store, name, ranges), strict=True):
            yield partial(_array_in, block, start, size)

    def _streamed(self, name: str, rows: Sequence[Input]) -> Iterator[Load]:
        try:
            stream = members(self.store, name, compressed=True)
            for row in rows:
                member = next((member for member in stream if member.index == row.index), None)
                if member is None:
                    raise EOFError("it ends before a sample that was planned")
                yield partial(_array, member.read())
        except TAR_ERRORS as error:
            raise self.damaged(name, f"damaged archive ({cleaned(str(error))})") from error

    # -- members ------------------------------------------------------------------------------------------------------

    @property
    def _label_column(self) -> str:
        return "label" if self.spec.labels in {"auto", "none"} else self.spec.labels

    @property
    def _label_member(self) -> str:
        return "cls" if self.spec.labels in {"auto", "none", "label"} else self.spec.labels

    def _codes_member(self, sample: _Sample) -> Member | None:
        if self.spec.column is not None:
            return sample.members.get(self.spec.column)
        arrays = [name for name in sample.members if name.rpartition(".")[2] == "npy"]
        return sample.members[min(arrays, key=lambda name: (name != "npy", name))] if arrays else None

    def _samples(self, name: str) -> Iterator[_Sample]:
        current: _Sample | None = None
        for member in members(self.store, name, is_compressed(self.store, name)):
            folder, slash, base = member.name.removeprefix("./").rpartition("/")
            stem, dot, extension = base.partition(".")
            if not stem or not dot:
                continue
            key, extension = folder + slash + stem, extension.lower()
            if current is not None and (key != current.key or extension in current.members):
                yield current
                current = None
            current = current or _Sample(key)
            self._take(current, extension, member)
        if current is not None:
            yield current

    def _take(self, sample: _Sample, extension: str, member: Member) -> None:
        """Reads what planning needs of a member: only possible before the next one."""
        sample.members[extension] = member
        wanted = extension in {self._label_member, "json"}
        looked = self.looks and self._codes_member(sample) is member
        if (wanted or looked) and member.size > MAX_MEMBER:
            sample.error = f"member too large: {extension} has {member.size} bytes, {MAX_MEMBER} are allowed"
        elif wanted:
            sample.texts[extension] = member.read()
        elif looked:
            try:
                sample.codes = _array(member.read())
            except (ValueError, InputError) as error:
                sample.error = f"ValueError: {extension}: {error}"


def _integer(label: bytes) -> int | None:
    text = label.strip()
    return int(text) if text.lstrip(b"+-").isdigit() and len(text) < 19 else None


def _array_in(block: Block, start: int, size: int) -> NDArray[Any]:
    return _array(block.bytes(start, size))


def _array(data: bytes) -> NDArray[Any]:
    """An array from the bytes of a .npy file; the size its header states is checked before memory is taken."""
    file = io.BytesIO(data)
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise InputError("an array of Python objects, which would have to be unpickled")
    values = np.frombuffer(data, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def open_webdataset_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> WebDatasetSource:
    """Ids in WebDataset tars."""
    return WebDatasetSource(spec, storage, state)
