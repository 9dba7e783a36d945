"""Rows of a plan: made of a source's inputs on one side, read back by a worker on the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokenshard.errors import SpecError
from tokenshard.sources.base import PLAN_COLUMNS
from tokenshard.sources.keys import UniqueKeys

BATCH = 10_000
"""Rows of a plan batch."""
META = "meta."
"""Prefix of plan columns with the user's values."""
DUPLICATE = "duplicate key: an earlier input has it; give every input a key of its own"


@dataclass(frozen=True)
class Input:
    """One row of a plan. Fields as in :data:`PLAN_COLUMNS`; ``meta`` holds the user's values by column name."""

    key: str
    uri: str
    offset: int | None = None
    bytes: int | None = None
    index: int | None = None
    error: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def plan_batches(
    inputs: Iterable[Input], meta: Sequence[pa.Field] = (), keys: UniqueKeys | None = None, contained: bool = False
) -> Iterator[pa.RecordBatch]:
    """Inputs as plan batches. ``keys``: given where keys can repeat; a repeated one is renamed and gets an error.

    ``contained``: the uri is a container of many inputs, and keys need only be unique in it.
    """
    stream = iter(inputs)
    while rows := list(islice(stream, BATCH)):
        table = {name: [getattr(row, name) for row in rows] for name in PLAN_COLUMNS.names}
        if keys is not None:
            containers = [row.uri if contained and row.error != DUPLICATE else None for row in rows]
            table["key"], repeated = keys.assign(table["key"], containers)
            table["error"] = [
                DUPLICATE if again else error for again, error in zip(repeated, table["error"], strict=True)
            ]
        arrays = [pa.array(table[column.name], column.type) for column in PLAN_COLUMNS]
        arrays += [pa.array([row.meta.get(column.name) for row in rows], column.type) for column in meta]
        yield pa.RecordBatch.from_arrays(arrays, schema=plan_schema(meta))


def plan_schema(meta: Sequence[pa.Field] = ()) -> pa.Schema:
    """Schema of a plan with these columns of the user."""
    return pa.schema([*PLAN_COLUMNS, *(pa.field(META + column.name, column.type) for column in meta)])


def require_usable(batches: Iterable[pa.RecordBatch], where: str, what: str = "images") -> Iterator[pa.RecordBatch]:
    """The same batches; SpecError at the end of a plan without a single usable input."""
    usable, first_error = 0, None
    for batch in batches:
        errors = batch.column("error")
        usable += errors.null_count
        if first_error is None and errors.null_count < len(errors):
            row = pc.drop_null(pc.indices_nonzero(pc.is_valid(errors)))[0].as_py()
            first_error = f"{batch.column('uri')[row].as_py()}: {errors[row].as_py()}"
        yield batch
    if first_error is not None and not usable:
        raise SpecError(f"{where}: no usable input found; the first problem is: {first_error}")
    if not usable:
        raise SpecError(f"{where}: no {what} found; check the path, `form` and `extensions`")


def planned_inputs(table: pa.Table, names: Iterable[str]) -> Iterator[Input]:
    """Rows of a plan with the user's columns ``names``; values that Python cannot hold exactly stay Arrow scalars."""
    base = table.select(PLAN_COLUMNS.names).to_pylist()
    meta = {name: column_values(table.column(META + name)) for name in names}
    for row, values in enumerate(base):
        yield Input(**values, meta={name: column[row] for name, column in meta.items()})


def column_values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as Python objects where Python holds them exactly, else as Arrow scalars."""
    kind = column.type
    plain = (
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
    )
    return column.to_pylist() if plain else [value if value.is_valid else None for value in column]
