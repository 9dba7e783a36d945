"""Ids in Arrow columns of lists, nested as deep as the token grid has axes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.errors import InputError


def is_ids(kind: pa.DataType) -> bool:
    """Whether a type is lists (of lists) of integers."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return _is_list(kind) and bool(pa.types.is_integer(leaf_type(kind)))


def leaf_type(kind: pa.DataType) -> pa.DataType:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def rows_of(column: pa.Array) -> Iterator[NDArray[np.generic] | InputError]:
    """Each row as an array of the shape its lists have; an InputError where they are not regular, or null."""
    array = column.storage if isinstance(column, pa.ExtensionArray) else column
    missing = array.is_null().to_numpy(zero_copy_only=False)
    ends, lengths = [], []
    while _is_list(array.type):
        inside = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        lengths.append(inside)
        ends.append(np.concatenate([[0], np.cumsum(inside)]))
        array = array.flatten()
    if array.null_count:
        yield from (InputError("nulls among the ids") for _ in missing)
        return
    values = array.to_numpy(zero_copy_only=False)
    for row, null in enumerate(missing.tolist()):
        yield InputError("no ids in this row") if null else _row(row, lengths, ends, values)


def _row(
    row: int, lengths: list[NDArray[np.int64]], ends: list[NDArray[np.int64]], values: NDArray[np.generic]
) -> NDArray[np.generic] | InputError:
    start, end, shape = row, row + 1, []
    for inside, edges in zip(lengths, ends, strict=True):
        sides = inside[start:end]
        if len(sides) and (sides != sides[0]).any():
            return InputError("lists of different lengths: not a token grid")
        shape.append(int(sides[0]) if len(sides) else 0)
        start, end = int(edges[start]), int(edges[end])
    return values[start:end].reshape(shape)
