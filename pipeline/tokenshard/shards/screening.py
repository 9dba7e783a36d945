"""Checks of long shard lists in bulk: which entries may be wrong. What is said about those is :mod:`.bounds`' business.

Screening is conservative: it may name a shard that is right, never pass over one that is not.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.shards.limits import (
    MAX_CHUNK_BYTES,
    MAX_FOOTER_BYTES,
    MAX_GROUP_IDS,
    MAX_GROUP_ROWS,
    MAX_ROW_GROUPS,
)
from tokenshard.shards.shard_list import DELETED, ShardList, chunks, group_counts, group_rows, whole, with_deleted

AT_ONCE = 16_384
"""Shards that are looked at together: what that takes in memory does not grow with their number."""
_FAR = 1 << 62
"""Places that sums of two cannot wrap around below."""
_EXACT = 1 << 53


def suspects(shards: ShardList, levels: int, grid: tuple[int | None, ...]) -> list[int]:
    """Numbers of the shards that may break a rule of the format in a dataset of so many levels and this grid."""
    found: list[int] = []
    for start in range(0, len(shards), AT_ONCE):
        part = ShardList(shards.table.slice(start, AT_ONCE))
        found += (start + number for number in _suspects(part, levels, grid))
    return found


def _suspects(shards: ShardList, levels: int, grid: tuple[int | None, ...]) -> list[int]:
    table, count = shards.table, len(shards)
    dims = _dims(whole(table["grid"]), len(grid))
    if dims is None or not _complete(table) or not _has_levels(table, levels):
        return list(range(count))
    rows, ids, size, raw = (table[name].to_numpy() for name in ("rows", "ids", "bytes", "raw_bytes"))
    footer = whole(table["footer"])
    footer_at, footer_length = footer.field("offset").to_numpy(), footer.field("length").to_numpy()
    counts, of_group = group_counts(shards), group_rows(shards)
    wrong = (rows < 1) | (ids < 0) | (size < 1) | (size > _FAR) | (raw < 0) | (counts > MAX_ROW_GROUPS)
    wrong |= ~_below_data(table["path"])
    wrong[with_deleted(shards)] = True  # few, and looked at one by one
    wrong |= (footer_at < 0) | (footer_length < 0) | (footer_at > _FAR) | (footer_length > MAX_FOOTER_BYTES)
    wrong |= footer_at + footer_length != size
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(of_group)])[np.concatenate([[0], np.cumsum(counts)])]
    wrong |= np.diff(ends) != rows
    wrong |= _grid_differs(dims, grid)
    product = np.where(dims < 0, 0, dims).astype(np.float64).prod(axis=1)  # 0 where an axis is not fixed
    fixed = (dims >= 0).all(axis=1)
    wrong |= fixed & ((product > _EXACT) | (ids > _EXACT) | (levels * rows.astype(np.float64) * product != ids))

    shard = np.repeat(np.arange(count), counts)
    bad = (of_group < 1) | (of_group > MAX_GROUP_ROWS) | (of_group * product[shard] > MAX_GROUP_IDS)
    offsets, lengths = chunks(shards, levels)
    bad |= ((offsets < 0) | (offsets > _FAR) | (lengths < 0) | (lengths > MAX_CHUNK_BYTES)).any(axis=1)
    after = np.concatenate([offsets[:, 1:], footer_at[shard][:, None]], axis=1)
    bad |= (after < offsets + lengths).any(axis=1)
    bad |= offsets[:, -1] + lengths[:, -1] - offsets[:, 0] > MAX_CHUNK_BYTES
    wrong[shard[bad]] = True
    return [int(number) for number in np.flatnonzero(wrong)]


def _dims(grids: pa.Array, rank: int) -> NDArray[np.int64] | None:
    """[shards, rank], -1 where an axis is not fixed; None where a grid is missing or of another rank."""
    if grids.null_count or not pc.all(pc.equal(pc.list_value_length(grids), rank), min_count=0).as_py():
        return None
    values = grids.flatten()
    if pc.any(pc.less(values, 0)).as_py():
        return None
    dims: NDArray[np.int64] = pc.fill_null(values, -1).to_numpy().astype(np.int64).reshape(-1, rank)
    return dims


def _complete(table: pa.Table) -> bool:
    """Whether no value is missing, but those of the grid and of deleted rows."""
    return not any(_nulls(whole(table[name])) for name in table.column_names if name not in {"grid", DELETED.name})


def _nulls(values: pa.Array) -> int:
    count = int(values.null_count)
    if pa.types.is_struct(values.type):
        return count + sum(_nulls(child) for child in values.flatten())
    return count + _nulls(values.flatten()) if pa.types.is_list(values.type) else count


def _has_levels(table: pa.Table, levels: int) -> bool:
    """Whether all row groups have a chunk of codes for each level."""
    codes = whole(table["row_groups"]).flatten().field("codes")
    return bool(pc.all(pc.equal(pc.list_value_length(codes), levels), min_count=0).as_py())


def _below_data(paths: pa.ChunkedArray) -> NDArray[np.bool_]:
    named = pc.match_substring_regex(paths, r"^data(/[^/\\\x00]+)+$")
    moves = pc.match_substring_regex(paths, r"/\.\.?(/|$)")
    below: NDArray[np.bool_] = pc.and_not(named, moves).to_numpy()
    return below


def _grid_differs(dims: NDArray[np.int64], grid: tuple[int | None, ...]) -> NDArray[np.bool_]:
    differs = np.zeros(len(dims), np.bool_)
    for axis, dim in enumerate(grid):
        if dim is not None:
            differs |= dims[:, axis] != dim
    return differs
