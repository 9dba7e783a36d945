"""Which rows of a dataset take part in an epoch: those a predicate holds for, as often as their weights say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.loading.order import chosen_rows
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.where import Where, bounds_of

READ_THREADS = 8


@dataclass(frozen=True)
class Selection:
    """Rows of each row group that take part: ``rows[g]`` how many; ``kept[g]`` which (absent: all, in order)."""

    rows: NDArray[np.int64]
    kept: Mapping[int, NDArray[np.int32]]

    @property
    def blocks(self) -> int:
        """Row groups with rows that take part."""
        return int(np.count_nonzero(self.rows))

    def locate(self, block: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows inside their row group, of rows counted among those that take part."""
        return chosen_rows(self.kept, block, row)


class Selector:
    """Finds the selection of an epoch. Reads the columns it needs once, and row groups without a match never."""

    def __init__(self, dataset: Dataset, where: str | None, weights: str | None) -> None:
        """``weights`` names a column of numbers >= 0: a sample of weight 2.5 comes two or three times an epoch."""
        self._groups: NDArray[np.int64] = np.diff(dataset.group_starts)
        self._kept: dict[int, NDArray[np.int32]] = {}
        self._weights: dict[int, NDArray[np.float64]] | None = None
        if where is None and weights is None:
            return
        predicate = Where.parse(where, dataset.schema) if where is not None else None
        if weights is not None:
            _check_weights(dataset, weights)
            self._weights = {}
        columns = [*(predicate.columns if predicate else ())]
        columns += [weights] if weights is not None and weights not in columns else []

        def select(group: int) -> tuple[NDArray[np.int32] | None, NDArray[np.float64]]:
            return _select(dataset, group, predicate, columns, weights)

        with ThreadPoolExecutor(READ_THREADS) as pool:
            for number, (kept, weight) in enumerate(pool.map(select, range(dataset.num_row_groups))):
                if kept is not None:
                    self._kept[number] = kept
                if self._weights is not None:
                    self._weights[number] = weight

    def epoch(self, seed: int, epoch: int) -> Selection:
        """The rows of an epoch: a pure function of seed and epoch."""
        kept = dict(self._kept)
        if self._weights is not None:
            for number, weight in self._weights.items():
                key = np.array([seed, epoch], np.uint64)
                draw = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, number, 1 << 62]))
                times = np.floor(weight + draw.random(len(weight))).astype(np.int64)
                all_rows = np.arange(self._groups[number], dtype=np.int32)
                kept[number] = np.repeat(kept.get(number, all_rows), times)
        rows: NDArray[np.int64] = self._groups.copy()
        for number, chosen in kept.items():
            rows[number] = len(chosen)
        return Selection(rows, kept)


def _select(
    dataset: Dataset, number: int, where: Where | None, columns: Sequence[str], weights: str | None
) -> tuple[NDArray[np.int32] | None, NDArray[np.float64]]:
    """Rows of a row group that hold (None: all), and their weights."""
    none = np.zeros(0, np.float64)
    reader, group = dataset.place(number)
    if where is not None and not where.may_hold(bounds_of(reader.metadata.row_group(group), where.columns)):
        return np.zeros(0, np.int32), none
    table = dataset.group_table(number, list(dict.fromkeys(columns)))
    kept = None
    if where is not None:
        mask = where.mask(table)
        kept = None if mask.all() else np.flatnonzero(mask).astype(np.int32)
    if weights is None:
        return kept, none
    values = table[weights].cast(pa.float64()).to_numpy()
    values = values if kept is None else values[kept]
    if not (np.isfinite(values) & (values >= 0)).all():
        raise SpecError(f"{reader.where(group)}: weights in column {weights!r} must be finite numbers of at least 0")
    return kept, np.ascontiguousarray(values)


def _check_weights(dataset: Dataset, name: str) -> None:
    if name not in dataset.schema.names:
        raise SpecError(f"weights: no column {name!r}; there are {', '.join(dataset.schema.names)}")
    kind = dataset.schema.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SpecError(f"weights: column {name!r} holds {kind}, not numbers")
