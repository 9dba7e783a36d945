"""Pages of samples by number, key and columns. Codes are never read for it, nor row groups that cannot match."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import KEY
from tokenshard.shards.where import Where, bounds_of
from tokenshard.viewer.opened import LABEL_NAMES, Opened, shown

MOST = 200
"""Samples of a page."""
PATIENCE = 1.0
"""Seconds after which a search gives what it has, and where to go on."""
AFTER_PREFIX = "\U0010ffff"
"""Sorts behind all that a key may go on with."""


@dataclass(frozen=True)
class Filter:
    """Which samples are shown."""

    key: str = ""
    contains: bool = False
    """whether ``key`` may stand anywhere in a key, or else begins it"""
    where: Where | None = None

    @property
    def everything(self) -> bool:
        return not self.key and self.where is None

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that it looks at."""
        return tuple(dict.fromkeys([*((KEY,) if self.key else ()), *(self.where.columns if self.where else ())]))

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Which rows of a table it lets through."""
        mask = np.ones(table.num_rows, np.bool_)
        if self.key:
            match = pc.match_substring if self.contains else pc.starts_with
            mask &= np.array(match(table[KEY], self.key).to_pylist(), np.bool_)
        return mask if self.where is None else mask & self.where.mask(table)


def listed(opened: Opened, first: int, count: int, wanted: Filter) -> dict[str, Any]:
    """At most ``count`` samples from number ``first`` on, and where the next page begins (null: there is none).

    `searched`: number up to which samples were looked at; a page may have less than ``count`` because time was up.
    """
    count, total = min(count, MOST), len(opened.dataset)
    first = min(max(first, 0), total)
    if wanted.everything:
        numbers, searched = list(range(first, min(first + count, total))), min(first + count, total)
    else:
        numbers, searched = _search(opened.dataset, first, count, wanted)
    return {
        "samples": _rows(opened, numbers),
        "first": first,
        "next": searched if searched < total else None,
        "searched": searched,
        "total": total,
    }


def _search(dataset: Dataset, first: int, count: int, wanted: Filter) -> tuple[list[int], int]:
    """Numbers of samples that are let through, and the number from which to go on."""
    numbers: list[int] = []
    until = time.monotonic() + PATIENCE
    starts = dataset.group_starts
    at = first
    for group in range(int(np.searchsorted(starts, first, "right")) - 1, dataset.num_row_groups):
        start, end = int(starts[group]), int(starts[group + 1])
        if _may_hold(dataset, group, wanted):
            mask = wanted.mask(dataset.group_table(group, wanted.columns))
            mask[: max(0, first - start)] = False
            found = (start + np.flatnonzero(mask)).tolist()
            room = count - len(numbers)
            numbers += found[:room]
            if len(found) > room:
                return numbers, found[room]
        at = end
        if len(numbers) == count or time.monotonic() > until:
            break
    return numbers, at


def _may_hold(dataset: Dataset, group: int, wanted: Filter) -> bool:
    """False where the keys of a shard, or the statistics of a row group, rule a match out."""
    shard, local = dataset.locate(group)
    entry = dataset.manifest.shards[shard]
    if wanted.key and not wanted.contains and not _begins_between(wanted.key, entry.min_key, entry.max_key):
        return False
    bounds = bounds_of(dataset.reader(shard).metadata.row_group(local), wanted.columns)
    if wanted.key and not wanted.contains and KEY in bounds and not _begins_between(wanted.key, *bounds[KEY]):
        return False
    return wanted.where is None or wanted.where.may_hold(bounds)


def _begins_between(prefix: str, low: str, high: str) -> bool:
    """Whether a key that begins so may be one from ``low`` to ``high``."""
    return prefix <= high and low <= prefix + AFTER_PREFIX


def _rows(opened: Opened, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Number, key and labels of samples."""
    labels = {column.name: column for column in opened.dataset.manifest.columns if column.role == "label"}
    names = [name for name in (KEY, *labels) if name in opened.dataset.schema.names]
    rows = []
    for number, row in zip(numbers, _cells(opened.dataset, numbers, names), strict=True):
        found: dict[str, Any] = {"number": number, "key": row.pop(KEY)}
        found["labels"] = {name: _meaning(labels[name].names, value) for name, value in row.items()}
        rows.append(found)
    return rows


def _meaning(names: tuple[str, ...] | None, value: Any) -> Any:
    if names and isinstance(value, int) and 0 <= value < min(len(names), LABEL_NAMES):
        return names[value]
    return shown(value)


def _cells(dataset: Dataset, numbers: Sequence[int], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The named columns of samples with these numbers, ascending."""
    wanted = np.asarray(numbers, np.int64)
    groups = np.searchsorted(dataset.group_starts, wanted, "right") - 1
    for group in np.unique(groups).tolist():
        rows = wanted[groups == group] - dataset.group_starts[group]
        yield from dataset.group_table(group, names).take(pa.array(rows)).to_pylist()
