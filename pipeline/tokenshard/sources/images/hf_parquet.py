"""Hugging Face Parquet form: images inside the files, as ``struct<bytes, path>`` or binary; other columns are carried.

Class names come from the schema metadata that `datasets` writes. Further image and audio columns are left out.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.errors import InputError
from tokenshard.parquet import open_parquet
from tokenshard.sources.images.base import ImageSource, Opened, fetch_file
from tokenshard.sources.images.columns import CarriedColumns, label_column
from tokenshard.sources.images.tables import streamed_parquet
from tokenshard.sources.keys import UniqueKeys, escape_name, unescape_name
from tokenshard.sources.outcome import cleaned
from tokenshard.sources.plan import BATCH, DUPLICATE, Input, plan_batches, plan_schema, require_usable

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content")
PARQUET_ERRORS = (pa.ArrowException, OSError)
"""What a damaged file raises while it is read."""
_ROWS_AT_A_TIME = 64


class HfParquetSource(ImageSource):
    """Rows of Parquet files. ``key`` is the column `key`, or the file name and the row."""

    form = "hf-parquet"

    def plan(self) -> Iterator[pa.RecordBatch]:
        named = self.files.what == "file"
        names = [entry.name for entry in self.files.list() if named or entry.name.lower().endswith(".parquet")]
        schema = self._first_schema(names)
        features = _features(schema)
        classes = {name: tuple(f.get("names", ())) for name, f in features.items() if f.get("_type") == "ClassLabel"}
        media = {column.name for column in schema if _is_media(column, features)}
        label = label_column(self.spec.labels, schema, self.spec.path, ("label", *classes, "labels"))
        without = {self._image_column(schema), "key", *media}
        carried = CarriedColumns(schema, without, label, classes)
        keys = UniqueKeys()
        batches = (batch for name in names for batch in self._file_batches(name, carried, keys))
        yield from require_usable(batches, self.spec.path)
        self.deliver(carried.columns(), carried.text_labels)

    def _first_schema(self, names: Sequence[str]) -> pa.Schema:
        failure = "no Parquet files found; check the path"
        for name in names:
            try:
                with self.store.open(name) as file:
                    return open_parquet(file).schema_arrow
            except PARQUET_ERRORS as error:
                failure = f"no readable Parquet file; the first one ({name}) is damaged: {error}"
        raise self.option_error(failure)

    def _image_column(self, schema: pa.Schema) -> str:
        name = find_image_column(schema, self.spec.image_column)
        if name is None:
            wanted = self.spec.image_column or "with images"
            raise self.option_error(f"no column {wanted}; it has {', '.join(schema.names)}; set image_column")
        return name

    def _file_batches(self, name: str, carried: CarriedColumns, keys: UniqueKeys) -> Iterator[pa.RecordBatch]:
        uri, start = escape_name(name), 0
        schema = plan_schema(carried.fields)
        columns = [field.name for field in carried.fields]
        try:
            with self.store.open(name) as file:
                parquet = streamed_parquet(file)
                image = find_image_column(parquet.schema_arrow, self.spec.image_column) or "with images"
                if missing := {*columns, image} - {*parquet.schema_arrow.names}:
                    raise pa.ArrowInvalid(f"no column {', '.join(sorted(missing))}")
                own = ["key"] if "key" in parquet.schema_arrow.names else []
                for batch in parquet.iter_batches(BATCH, columns=[*columns, *own], use_threads=False):
                    rows = range(start, start + batch.num_rows)
                    made = [f"{uri}/{row:08d}" for row in rows]
                    given = batch.column("key").cast(pa.string()).to_pylist() if own else made
                    unique, repeated = keys.assign([key or other for key, other in zip(given, made, strict=True)])
                    nothing = pa.nulls(batch.num_rows, pa.int64())
                    errors = pa.array([DUPLICATE if again else None for again in repeated], pa.string())
                    base = [pa.array(unique), pa.array([uri] * len(rows)), nothing, nothing, pa.array(rows), errors]
                    yield pa.RecordBatch.from_arrays([*base, *carried.arrays(batch)], schema=schema)
                    start += batch.num_rows
        except PARQUET_ERRORS as error:
            damaged = Input(uri, uri, error=f"unreadable Parquet file: {cleaned(str(error))}")
            yield from plan_batches([damaged], carried.fields, keys)

    def _opened(self, rows: Sequence[Input]) -> Iterator[Opened]:
        for uri, same in groupby(rows, key=lambda row: row.uri):
            group = list(same)
            yield from self._in_sequence(self._records(uri, group), len(group))

    def _records(self, uri: str, rows: Sequence[Input]) -> Iterator[Opened]:
        """Images of some rows of a file: reads the row groups they are in, a few rows at a time."""
        with self.store.open(unescape_name(uri)) as file:
            parquet = streamed_parquet(file)
            column = self._image_column(parquet.schema_arrow)
            wanted, start = deque(row.index or 0 for row in rows), 0
            for group in range(parquet.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                inside = []
                while wanted and wanted[0] < end:
                    inside.append(wanted.popleft() - start)
                if inside:  # a damaged row group leaves the others alone
                    yield from self._in_sequence(self._row_group(parquet, group, column, inside), len(inside))
                start = end

    def _row_group(self, parquet: pq.ParquetFile, group: int, column: str, wanted: Sequence[int]) -> Iterator[Opened]:
        position, remaining = 0, deque(wanted)
        for batch in parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[column], use_threads=False):
            values = batch.column(0)
            while remaining and remaining[0] < position + len(values):
                yield partial(self._image_bytes, values[remaining.popleft() - position]), self._decode
            position += len(values)

    def _image_bytes(self, value: pa.Scalar) -> bytes:
        image: Any = value.as_py()
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if data:
            if len(data) > self.spec.max_bytes:
                raise InputError(f"{len(data)} bytes are over max_bytes ({self.spec.max_bytes})")
            return bytes(data)
        if not path:
            raise InputError("no image in this row")
        if path.startswith("/") or "://" in path or ".." in path.split("/"):
            raise InputError("no bytes in this row, and its path leaves the folder of the Parquet file")
        return fetch_file(self.store, path, None, None, self.spec.max_bytes)


def find_image_column(schema: pa.Schema, chosen: str | None = None) -> str | None:
    """The column with images: the chosen one, one declared or shaped as an image, else binary by name or alone."""
    if chosen is not None:
        return chosen if chosen in schema.names else None
    features = _features(schema)
    declared = [column.name for column in schema if features.get(column.name, {}).get("_type") == "Image"]
    shaped = [column.name for column in schema if _is_image_struct(column.type)]
    binary = [column.name for column in schema if _is_binary(column.type)]
    usual = [name for name in IMAGE_COLUMNS if name in binary]
    return next(iter([*declared, *shaped, *usual, *(binary if len(binary) == 1 else [])]), None)


def _is_media(column: pa.Field, features: dict[str, dict[str, Any]]) -> bool:
    return _is_image_struct(column.type) or features.get(column.name, {}).get("_type") in {"Image", "Audio", "Video"}


def _is_image_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Column features as the `datasets` library wrote them; none where they are absent or damaged."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
