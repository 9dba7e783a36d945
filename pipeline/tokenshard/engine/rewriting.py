"""Rows of a shard that is there, as a batch for one that takes its place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids
from tokenshard.shards.reader import ShardReader
from tokenshard.shards.schema import KEY, size_names
from tokenshard.shards.writer import TokenBatch


def user_columns(reader: ShardReader) -> pa.Schema:
    """The columns of a shard that are neither its key nor sizes and codes."""
    columns = reader.columns
    hidden = {KEY, *size_names(columns, reader.schema), *(spec.column for spec in columns.codes)}
    return pa.schema([each for each in reader.schema if each.name not in hidden])


def rows_batch(
    reader: ShardReader,
    table: pa.Table,
    grids: NDArray[np.int32],
    ids: Sequence[Ids],
    rows: NDArray[np.int64],
) -> TokenBatch:
    """``rows``: numbers in the shard, of which ``table`` (key, extents, user columns), ``grids`` and ``ids`` (by level,
    flat) hold what they are."""
    extents, user = reader.columns.extents, user_columns(reader)
    sizes = np.stack([table[name].to_numpy() for name in extents], axis=1) if extents else grids
    raw, total = reader.entry.raw_bytes, reader.entry.rows
    return TokenBatch(
        keys=table[KEY].to_pylist(),
        sizes=sizes.astype(np.int32),
        ids=tuple(ids),
        raw_bytes=sum(raw * (row + 1) // total - raw * row // total for row in rows.tolist()),
        columns=table.select(user.names) if len(user) else None,
    )
