"""Ids in columns of tables: plain Parquet files, and the folders of Hugging Face `datasets`.

The ids are lists, nested as deep as the token grid has axes, or flat with the sides of the grid in columns beside them
(`grid_height`, `grid_width`, …). Several levels are columns of their own (`codes_0`, `codes_1`, …), or the first axis.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.parquet import open_parquet
from tokenshard.shards.export.base import SPLIT
from tokenshard.shards.export.parquet import GRID_COLUMNS
from tokenshard.shards.schema import KEY, code_names
from tokenshard.sources.codes.base import CodeFiles, Load, Record
from tokenshard.sources.codes.nested import is_ids, rows_of
from tokenshard.sources.images.tables import buffered, streamed_parquet
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.outcome import cleaned
from tokenshard.sources.plan import Input
from tokenshard.spec.codes import ImportSourceSpec
from tokenshard.store import Store

ROWS = 1024
"""Rows read together."""
USUAL = ("codes", "tokens", "input_ids", "token_ids", "indices", "ids")
"""Columns taken for the ids where none is named and several could be."""
_HUB_NAME = re.compile(r"(?:^|/)([\w.]+?)-\d{5}(?:-of-\d{5})?\.parquet$")
TABLE_ERRORS = (pa.ArrowException, OSError, ValueError)

Ids = NDArray[Any] | InputError


class TableSource(CodeFiles):
    """Ids in tables of one kind. Keys from the column `key` (or `key_column`), else the file and the row."""

    extensions: ClassVar[tuple[str, ...]]

    # -- columns ------------------------------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> list[str]:
        """Names of the files."""
        named = self.files.what == "file"
        found = [entry.name for entry in self.files.list() if named or entry.name.endswith(self.extensions)]
        if not found:
            raise self.error(f"no {' or '.join(self.extensions)} files found; check the path")
        return found

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the first file; all others must have its columns."""
        return self._schema_of(self.tables[0])

    def _schema_of(self, name: str) -> pa.Schema:
        try:
            return read_schema(self.store, name)
        except TABLE_ERRORS as error:
            raise self.damaged(name, f"unreadable table ({cleaned(str(error))})") from error

    @cached_property
    def _code_columns(self) -> tuple[str, ...]:
        names = self.schema.names
        if self.spec.column is not None:
            if self.spec.column not in names:
                raise self.error(f"no column {self.spec.column!r}; it has {', '.join(names)}")
            return (self.spec.column,)
        split = tuple(code_names(self.levels))
        if set(split) <= set(names):
            return split
        ids = [field.name for field in self.schema if is_ids(field.type)]
        found = next((name for name in USUAL if name in ids), ids[0] if len(ids) == 1 else None)
        if found is None:
            raise self.error(
                f"cannot tell which column holds the ids: lists of whole numbers are {', '.join(ids) or 'in none'}; "
                "name one with `column`"
            )
        return (found,)

    @cached_property
    def _grid_columns(self) -> tuple[str, ...]:
        """Columns with the sides of the token grid, where the file has them."""
        for names in sorted(GRID_COLUMNS.values(), key=len, reverse=True):
            if set(names) <= set(self.schema.names):
                return names
        return ()

    @property
    def _key(self) -> str:
        return self.spec.key_column or KEY

    def fields(self) -> list[pa.Field]:
        taken = {self._key, *self._code_columns, *self._grid_columns}
        if self.spec.key_column is not None and self._key not in self.schema.names:
            raise self.error(f"no column {self._key!r} for keys; it has {', '.join(self.schema.names)}")
        split = [pa.field(SPLIT, pa.string())] if self._split_from_name else []
        return [pa.field(f.name, _dense(f.type)) for f in self.schema if f.name not in taken] + split

    def split_of(self, name: str) -> str | None:
        """The split that a file belongs to, where its name says so."""
        return None

    @cached_property
    def _split_from_name(self) -> bool:
        return SPLIT not in self.schema.names and any(self.split_of(name) for name in self.tables)

    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        try:
            features = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            named = {name: feature for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
            return {name: tuple(map(str, feature["names"])) for name, feature in named.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            return {}

    # -- rows ---------------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[Record]:
        names = [field.name for field in self.fields() if field.name in self.schema.names]
        keyed = self._key in self.schema.names
        wanted = [*names, *([self._key] if keyed else []), *(self._id_columns if self.looks else ())]
        for name in self.tables:
            uri, split = escape_name(name), {SPLIT: self.split_of(name)} if self._split_from_name else {}
            for start, batch in self._batches(name, wanted):
                made = [f"{uri}/{row:08d}" for row in range(start, start + batch.num_rows)]
                given = batch.column(self._key).cast(pa.string()).to_pylist() if keyed else made
                rows = batch.select(names).to_pylist() if names else [{} for _ in made]
                ids: Iterator[Ids | None] = self._ids(batch) if self.looks else iter([None] * len(made))
                for place, (meta, codes) in enumerate(zip(rows, ids, strict=True)):
                    bad = isinstance(codes, InputError)
                    error = f"InputError: {codes}" if bad else None
                    row = Input(given[place] or made[place], uri, None, None, start + place, error, {**meta, **split})
                    yield Record(row, None if isinstance(codes, InputError) else codes)

    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        """Reads the parts of the file that the rows are in, some rows at a time."""
        name, places = unescape_name(uri), [row.index or 0 for row in rows]
        done = 0
        for start, batch in self._batches(name, self._id_columns, places[0] if places else 0):
            if done == len(places):
                return
            end = start + batch.num_rows
            if places[done] < end:
                ids = list(self._ids(batch))
                while done < len(places) and places[done] < end:
                    yield partial(_given, ids[places[done] - start])
                    done += 1
        if done < len(places):
            raise self.damaged(name, f"it has no row {places[done]}, which was planned")

    @property
    def _id_columns(self) -> tuple[str, ...]:
        return (*self._code_columns, *self._grid_columns)

    def _batches(self, name: str, columns: Sequence[str], first: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        if missing := set(columns) - set(self._schema_of(name).names):
            raise self.damaged(name, f"no column {sorted(missing)[0]!r}, which {self.tables[0]} has")
        try:
            yield from read_batches(self.store, name, columns, first)
        except TABLE_ERRORS as error:
            raise self.damaged(name, f"damaged table ({cleaned(str(error))})") from error

    def _ids(self, batch: pa.RecordBatch) -> Iterator[Ids]:
        """The ids of each row: [*grid], or [levels, *grid] for several levels."""
        columns = [rows_of(batch.column(name)) for name in self._code_columns]
        grids = [batch.column(name).to_pylist() for name in self._grid_columns]
        for row, levels in enumerate(zip(*columns, strict=True)):
            yield _joined(levels, [sides[row] for sides in grids])


class ParquetSource(TableSource):
    """Parquet files."""

    format = "parquet"
    extensions = (".parquet",)


class HfSource(TableSource):
    """A folder of Hugging Face `datasets`: Parquet as on the Hub, or Arrow files as `save_to_disk` writes them."""

    format = "hf"
    extensions = (".parquet", ".arrow")

    @cached_property
    def tables(self) -> list[str]:
        found = [name for name in super().tables if not name.rpartition("/")[2].startswith("cache-")]
        arrow = [name for name in found if name.endswith(".arrow")]
        return arrow or found

    def split_of(self, name: str) -> str | None:
        """`train` of `train/data-00000-of-00001.arrow`, and of `data/train-00000-of-00001.parquet`."""
        if name.endswith(".arrow"):
            return name.split("/")[-2] if "/" in name else None
        found = _HUB_NAME.search(name)
        return found[1] if found else None


def read_schema(store: Store, name: str) -> pa.Schema:
    """Schema of a Parquet or Arrow file. Raises one of :data:`TABLE_ERRORS`."""
    with store.open(name) as file:
        if name.endswith(".arrow"):
            return pa.ipc.open_stream(file).schema
        return open_parquet(file).schema_arrow


def read_batches(
    store: Store, name: str, columns: Sequence[str], first: int = 0, most: int = ROWS
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(row of the file, at most so many rows) with these columns; parts before the row ``first`` may be left out."""
    if name.endswith(".arrow"):
        with buffered(store, name) as file:
            start = 0
            for batch in pa.ipc.open_stream(file):
                for offset in range(0, batch.num_rows, most):
                    piece = batch.slice(offset, most)
                    if start + offset + piece.num_rows > first:
                        yield start + offset, piece.select(list(columns))
                start += batch.num_rows
        return
    with store.open(name) as file:
        parquet, start = streamed_parquet(file), 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if start + rows > first:
                position = start
                for batch in parquet.iter_batches(most, row_groups=[group], columns=list(columns), use_threads=False):
                    yield position, batch
                    position += batch.num_rows
            start += rows


def _dense(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _joined(levels: Sequence[Ids], sides: Sequence[int | None]) -> Ids:
    """The ids of a row from its columns."""
    found: list[NDArray[Any]] = []
    for ids in levels:
        if isinstance(ids, InputError):
            return ids
        if sides and ids.ndim == 1:
            if None in sides or any((side or 0) < 0 for side in sides):
                return InputError(f"a token grid of {sides}")
            if ids.size != np.prod([side or 0 for side in sides], dtype=np.float64):
                return InputError(f"{ids.size} ids do not fill a token grid of {sides}")
            ids = ids.reshape([side or 0 for side in sides])
        found.append(ids)
    if any(ids.shape != found[0].shape for ids in found):
        return InputError("levels of different shapes")
    return found[0] if len(found) == 1 else np.stack(found)


def _given(ids: Ids) -> NDArray[Any]:
    if isinstance(ids, InputError):
        raise ids
    return ids


def open_parquet_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> ParquetSource:
    """Ids in Parquet files."""
    return ParquetSource(spec, storage, state)


def open_hf_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> HfSource:
    """Ids in a folder of Hugging Face `datasets`."""
    return HfSource(spec, storage, state)
