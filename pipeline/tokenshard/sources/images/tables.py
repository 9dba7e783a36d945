"""Tables of a user: CSV, TSV, JSON lines and Parquet files as Arrow batches, streamed and with stable types.

Text formats are read twice: once to find types that hold for all rows, then to deliver them. A CSV column is a number
only where nothing is lost by that: ``007`` and integers too long for float64 stay text. JSON values of mixed types
stay JSON text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenshard.errors import SpecError
from tokenshard.parquet import open_parquet
from tokenshard.store import Store

ROWS = 10_000
"""Rows of a batch."""
_MISSING = pa.array(["", "NA", "N/A", "null", "NULL", "nan", "NaN"])
_LOSSY_FLOAT = r"^[+-]?(0\d|\d{16,}$)"


@dataclass(frozen=True)
class TableFile:
    """A table: its schema, and a function that streams its rows."""

    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch]]


def open_table(store: Store, name: str) -> TableFile:
    """A CSV, TSV, JSON lines or Parquet file by its extension. Raises SpecError where it cannot be read as such."""
    extension = name.rpartition(".")[2].lower()
    try:
        if extension == "parquet":
            return _parquet(store, name)
        if extension in {"csv", "tsv"}:
            return _csv(store, name, "\t" if extension == "tsv" else ",")
        return _json_lines(store, name)
    except UnicodeError as error:
        raise SpecError(f"{store.url(name)}: text is not UTF-8 ({error.reason}); save it as UTF-8") from error  # type: ignore[attr-defined]
    except (pa.ArrowException, csv.Error) as error:
        raise SpecError(f"{store.url(name)}: not a readable {extension} table: {error}") from error


def buffered(store: Store, name: str) -> io.BufferedReader:
    """A binary file read in requests of 1 MiB where it is remote."""
    raw: Any = store.open(name)
    return io.BufferedReader(raw, 1 << 20)


def _parquet(store: Store, name: str) -> TableFile:
    with store.open(name) as file:
        schema = open_parquet(file).schema_arrow

    def batches() -> Iterator[pa.RecordBatch]:
        with store.open(name) as file:
            yield from streamed_parquet(file).iter_batches(ROWS, use_threads=False)

    return TableFile(schema, batches)


def streamed_parquet(file: BinaryIO) -> pq.ParquetFile:
    """A Parquet file of any size to be read once: pages are fetched when they are needed, and not kept."""
    return open_parquet(file, buffer_size=4 << 20)


def _text(store: Store, name: str) -> TextIO:
    return io.TextIOWrapper(buffered(store, name), "utf-8-sig", newline="")


# -- CSV --------------------------------------------------------------------------------------------------------------


def _csv(store: Store, name: str, delimiter: str) -> TableFile:
    types: dict[str, pa.DataType | None] = {}
    for columns in _csv_columns(store, name, delimiter):
        types = {title: _text_type(pa.array(values), types.get(title)) for title, values in columns.items()}
    schema = pa.schema([pa.field(title, found or pa.string()) for title, found in types.items()])

    def batches() -> Iterator[pa.RecordBatch]:
        for columns in _csv_columns(store, name, delimiter):
            arrays = [_typed(pa.array(columns[column.name]), column.type) for column in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return TableFile(schema, batches)


def _csv_columns(store: Store, name: str, delimiter: str) -> Iterator[dict[str, tuple[str, ...]]]:
    """Chunks of rows, by column."""
    with _text(store, name) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(reader, [])
        if not header or len(set(header)) != len(header):
            raise SpecError(f"{store.url(name)}:1: expected a header with different column names, got {header}")

        def rows() -> Iterator[list[str]]:
            for row in reader:
                if row and len(row) != len(header):
                    wrong = f"{len(row)} values in a table of {len(header)} columns"
                    raise SpecError(f"{store.url(name)}:{reader.line_num}: {wrong}")
                if row:
                    yield row

        stream = rows()
        while chunk := list(islice(stream, ROWS)):
            yield dict(zip(header, zip(*chunk, strict=True), strict=True))


def _text_type(values: pa.Array, known: pa.DataType | None) -> pa.DataType | None:
    """The narrowest type that holds these texts and earlier ones of type ``known``; None while all are missing."""
    text = values.filter(pc.invert(pc.is_in(values, _MISSING)))
    if known == pa.string() or not len(text):
        return known
    all_bool = pc.all(pc.is_in(pc.utf8_lower(text), pa.array(["true", "false"]))).as_py()
    if all_bool or known == pa.bool_():
        return pa.bool_() if all_bool and known in {None, pa.bool_()} else pa.string()
    try:
        if known != pa.float64() and text.cast(pa.int64()).cast(pa.string()).equals(text):
            return pa.int64()
    except pa.ArrowInvalid:
        pass
    try:
        text.cast(pa.float64())
    except pa.ArrowInvalid:
        return pa.string()
    return pa.string() if pc.any(pc.match_substring_regex(text, _LOSSY_FLOAT)).as_py() else pa.float64()


def _typed(text: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind == pa.string():
        return text
    return pc.if_else(pc.is_in(text, _MISSING), pa.scalar(None, pa.string()), text).cast(kind)


# -- JSON lines -------------------------------------------------------------------------------------------------------


def _json_lines(store: Store, name: str) -> TableFile:
    types: dict[str, pa.DataType] = {}
    for rows in _json_rows(store, name):
        for title in dict.fromkeys(key for row in rows for key in row):
            types[title] = common_type(types.get(title, pa.null()), [row.get(title) for row in rows])
    # A column without a single value has no type of its own.
    schema = pa.schema([(title, pa.string() if kind == pa.null() else kind) for title, kind in types.items()])

    def batches() -> Iterator[pa.RecordBatch]:
        for rows in _json_rows(store, name):
            arrays = [json_array([row.get(column.name) for row in rows], column.type) for column in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return TableFile(schema, batches)


def _json_rows(store: Store, name: str) -> Iterator[list[dict[str, Any]]]:
    with _text(store, name) as file:
        numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        while chunk := list(islice(numbered, ROWS)):
            rows = []
            for number, line in chunk:
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise SpecError(f"{store.url(name)}:{number}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise SpecError(f"{store.url(name)}:{number}: expected a JSON object a line")
                rows.append(row)
            yield rows


def common_type(known: pa.DataType, values: list[Any]) -> pa.DataType:
    """A type that holds JSON values and earlier ones of type ``known``; string (of JSON text) where no other does."""
    if known == pa.string():
        return known
    try:
        found = pa.array(values).type
        schemas = [pa.schema([("x", kind)]) for kind in (known, found)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowException, OverflowError):
        return pa.string()


def json_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """JSON values as an array of the type that :func:`common_type` found."""
    if kind == pa.string():
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(values, kind)
