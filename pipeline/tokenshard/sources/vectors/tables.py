"""Vectors in a column of Parquet or Arrow files: a row is a page, its value a list of vectors.

The other columns go along. What Lance, Hugging Face `datasets` and dataframes write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.shards.schema import KEY, is_reserved
from tokenshard.sources.codes.tables import TABLE_ERRORS, read_batches, read_schema
from tokenshard.sources.documents.base import MADE
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.outcome import cleaned
from tokenshard.sources.plan import Input
from tokenshard.sources.vectors.base import DOCUMENT, PAGE, Load, VectorFiles

TABLE_NAMES = (".parquet", ".arrow")
_TOGETHER = 32
"""Rows with their vectors that are read at a time."""


class VectorTables(VectorFiles):
    """Keys from the column `key` (or `key_column`), else the file and the row."""

    form: ClassVar[str] = "tables"

    @cached_property
    def _tables(self) -> list[str]:
        found = [entry.name for entry in self.files.list() if entry.name.endswith(TABLE_NAMES)]
        if not found:
            raise SpecError(f"{self.spec.path}: no {' or '.join(TABLE_NAMES)} files found; check the path")
        return found

    @cached_property
    def _schema(self) -> pa.Schema:
        """Of the first file; all others must have its columns."""
        try:
            return read_schema(self.store, self._tables[0])
        except TABLE_ERRORS as error:
            raise FormatError(f"{self.store.url(self._tables[0])}: unreadable table ({cleaned(str(error))})") from error

    @cached_property
    def _column(self) -> str:
        """The column with the vectors."""
        schema = self._schema
        found = [field.name for field in schema if _are_vectors(field.type)]
        if self.spec.column is not None and self.spec.column not in found:
            raise SpecError(f"{self.spec.path}: column {self.spec.column!r} holds no lists of vectors; {_known(found)}")
        if self.spec.column is None and len(found) != 1:
            raise SpecError(f"{self.spec.path}: cannot tell which column holds the vectors; {_known(found)}")
        return self.spec.column or found[0]

    @property
    def _key(self) -> str | None:
        key = self.spec.key_column or KEY
        if key not in self._schema.names and self.spec.key_column is not None:
            raise SpecError(f"{self.spec.path}: no column {key!r}; it has {', '.join(self._schema.names)}")
        return key if key in self._schema.names else None

    @cached_property
    def _kept(self) -> list[pa.Field]:
        """Columns that go along."""
        made = {column.name for column in MADE}
        return [
            pa.field(field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
            for field in self._schema
            if field.name not in {self._column, self._key, *made}
            and not is_reserved(field.name)
            and not _are_vectors(field.type)
        ]

    def fields(self) -> Sequence[pa.Field]:
        names = {field.name for field in self._kept}
        return [*(field for field in (DOCUMENT, PAGE) if field.name not in names), *self._kept]

    def pages(self) -> Iterator[Input]:
        names = [field.name for field in self._kept]
        read = [*names, *([self._key] if self._key is not None else [])]
        for name in self._tables:
            uri = escape_name(name)
            for start, batch in self._batches(name, read or [self._column]):
                made = [f"{uri}/{row:08d}" for row in range(start, start + batch.num_rows)]
                given = made if self._key is None else batch.column(self._key).cast(pa.string()).to_pylist()
                for place, meta in enumerate(batch.select(names).to_pylist() if names else [{} for _ in made]):
                    key = given[place] or made[place]
                    yield Input(key, uri, index=start + place, meta={"document": key, "page": None, **meta})

    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        name, places = unescape_name(uri), [row.index or 0 for row in rows]
        done = 0
        for start, batch in self._batches(name, [self._column], places[0] if places else 0, _TOGETHER):
            while done < len(places) and places[done] < start + batch.num_rows:
                yield partial(_vectors, batch.column(self._column), places[done] - start)
                done += 1
            if done == len(places):
                return
        raise FormatError(f"{self.store.url(name)}: it has no row {places[done]}, which was planned; restore the file")

    def _batches(
        self, name: str, columns: Sequence[str], first: int = 0, rows: int = 1024
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        try:
            if missing := set(columns) - set(read_schema(self.store, name).names):
                lacks = sorted(missing)[0]
                raise FormatError(f"{self.store.url(name)}: no column {lacks!r}, which {self._tables[0]} has")
            yield from read_batches(self.store, name, columns, first, rows)
        except TABLE_ERRORS as error:
            raise FormatError(f"{self.store.url(name)}: damaged table ({cleaned(str(error))}); restore it") from error


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _are_vectors(kind: pa.DataType) -> bool:
    """Whether values are lists of lists of floats."""
    return _is_list(kind) and _is_list(kind.value_type) and bool(pa.types.is_floating(kind.value_type.value_type))


def _known(found: Sequence[str]) -> str:
    return f"lists of vectors are in {', '.join(found) or 'none'}; name one with `column`"


def _vectors(column: pa.Array, row: int) -> NDArray[np.float32]:
    """The vectors of a row. Raises InputError where they are missing or of different lengths."""
    value = column[row].values
    if value is None:
        raise InputError("no vectors")
    lengths = np.unique(value.value_lengths().to_numpy(zero_copy_only=False))
    flat = value.flatten()
    if value.null_count or flat.null_count:
        raise InputError("vectors with missing values")
    if len(lengths) > 1:
        raise InputError(f"vectors of {int(lengths[0])} and of {int(lengths[-1])} dimensions")
    width = int(lengths[0]) if len(lengths) else 0
    return np.ascontiguousarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(len(value), width)
