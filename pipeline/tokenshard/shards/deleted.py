"""Rows of a shard that were deleted: they stay in the file, and no reader of the dataset gives them out.

The manifest lists them shard by shard, as runs. What a version lacks is thus decided in one step, with the version;
compaction writes shards without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenshard.spec.manifest import ShardEntry

Run = tuple[int, int]
"""Rows [start, end)."""


def runs_of(mask: NDArray[np.bool_]) -> tuple[Run, ...]:
    """The runs of rows that a mask [rows] marks."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))


def deleted_rows(entry: ShardEntry) -> NDArray[np.bool_]:
    """Which rows of a shard are deleted, bool [rows]."""
    mask = np.zeros(entry.rows, np.bool_)
    for start, end in entry.deleted:
        mask[start:end] = True
    return mask


def live_rows(entry: ShardEntry) -> Sequence[NDArray[np.int64] | None]:
    """Of each row group the rows that are not deleted, counted inside it; None where that is all of them."""
    if not entry.deleted:
        return [None] * len(entry.row_groups)
    ends = np.cumsum([group.rows for group in entry.row_groups])[:-1]
    masks = np.split(deleted_rows(entry), ends)
    return [np.flatnonzero(~mask) if mask.any() else None for mask in masks]
