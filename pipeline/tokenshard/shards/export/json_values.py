"""Columns as JSON values, for the formats that keep them so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tokenshard.shards.export.base import Batch, Contents, refuse


def check_json_columns(contents: Contents) -> None:
    """Raises SpecError for a column whose values JSON cannot hold exactly."""
    for field in contents.schema:
        if not is_json(field.type):
            raise refuse(
                contents,
                f"the column {field.name!r} ({field.type}) cannot be written as JSON; leave it out with --columns, "
                "or export to parquet, which keeps every type",
            )


def is_json(kind: pa.DataType) -> bool:
    """Whether values of a type come back from JSON as they were."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return is_json(kind.value_type)
    if types.is_struct(kind):
        return all(is_json(field.type) for field in kind)
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
    return types.is_null(kind) or any(test(kind) for test in plain)


def json_rows(batch: Batch) -> Iterator[dict[str, Any]]:
    """The columns of each sample as Python values."""
    return iter(batch.columns.to_pylist() if batch.columns.num_columns else [{} for _ in batch.keys])


def json_text(value: Any) -> str:
    """A value as JSON text."""
    return json.dumps(value, ensure_ascii=False)
