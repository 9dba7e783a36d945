"""Where on its page each code of a page stands: the columns that keep it, and maps of the page made from them.

An encoder's vectors each stand for a patch of the page. Compression may sort them, leave some out, or make one of
several; what became of each is kept, so that a map over the whole page can be drawn of any values of the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.sources.documents.base import GRID_COLUMNS, MERGE, PATCHES, POSITIONS, SALIENCY

_DAMAGED = "the shard is damaged"


@dataclass(frozen=True)
class Patches:
    """The patches of a page with n codes, which an encoder had given m vectors."""

    grid: tuple[int, int]
    """patches of the page: rows, columns"""
    positions: NDArray[np.int64]
    """[n]: row * columns + column of the patch of each code; of a code of several vectors that of the most salient"""
    saliency: NDArray[np.float32] | None
    """[n]: attention that each code received, in even shares; None where the encoder has none"""
    labels: NDArray[np.int64]
    """[m]: the code that each of the encoder's vectors became (a part of); -1 where it was dropped"""
    patches: NDArray[np.int64]
    """[m]: patch of each of the encoder's vectors"""

    @classmethod
    def whole(cls, grid: tuple[int, int], patches: NDArray[np.int64], saliency: NDArray[np.float32] | None) -> Self:
        """Of vectors that are codes themselves, in their order."""
        return cls(grid, patches, saliency, np.arange(len(patches)), patches)

    def after(self, labels: NDArray[np.int64], count: int) -> Self:
        """When its codes became ``count`` others, as ``labels`` [n] says: the number of the new code, -1 for none."""
        kept = np.flatnonzero(labels >= 0)
        salient = np.zeros(len(kept)) if self.saliency is None else -self.saliency[kept]
        first = kept[np.lexsort((salient, labels[kept]))]
        found, place = np.unique(labels[first], return_index=True)
        assert len(found) == count
        chosen = first[place]
        saliency = None if self.saliency is None else self.saliency[chosen]
        through = np.where(self.labels >= 0, labels[self.labels], -1) if len(labels) else self.labels
        return type(self)(self.grid, self.positions[chosen], saliency, through, self.patches)

    def map(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values [..., n] of the codes as maps [..., rows, columns]: the largest on each patch, NaN on empty ones."""
        kept = self.labels >= 0
        spread = np.full((*values.shape[:-1], self.grid[0] * self.grid[1]), -np.inf, np.float32)
        of_patch = np.moveaxis(spread, -1, 0)
        np.maximum.at(of_patch, self.patches[kept], np.moveaxis(values, -1, 0)[self.labels[kept]])
        spread[~np.isfinite(spread)] = np.nan
        return spread.reshape(*values.shape[:-1], *self.grid)

    # -- in shards ----------------------------------------------------------------------------------------------------

    def columns(self, merged: bool) -> dict[str, Any]:
        """Values of the columns of a page. ``merged``: with what became of each of the encoder's vectors."""
        height, width = GRID_COLUMNS
        cells = np.uint16 if self.grid[0] * self.grid[1] <= 1 << 16 else np.uint32
        found: dict[str, Any] = {height.name: self.grid[0], width.name: self.grid[1]}
        found[POSITIONS.name] = self.positions.astype(cells).tobytes()
        found[SALIENCY.name] = _levels(self.saliency, len(self.positions)).tobytes()
        if merged:
            numbers = np.uint16 if len(self.positions) < (1 << 16) - 1 else np.uint32
            found[PATCHES.name] = self.patches.astype(cells).tobytes()
            found[MERGE.name] = self.labels.astype(numbers).tobytes()
        return found

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From the columns of a page. Raises FormatError where they do not fit together."""
        grid = row[GRID_COLUMNS[0].name], row[GRID_COLUMNS[1].name]
        cells = "<u2" if grid[0] * grid[1] <= 1 << 16 else "<u4"
        positions = _numbers(row[POSITIONS.name], cells, POSITIONS.name)
        levels = _numbers(row[SALIENCY.name], "u1", SALIENCY.name)
        if len(levels) != len(positions):
            raise FormatError(f"{len(positions)} positions and {len(levels)} saliencies; {_DAMAGED}")
        saliency = np.exp2((levels - 128) / 32).astype(np.float32) if levels.any() else None
        if MERGE.name not in row:
            found = cls.whole(grid, positions, saliency)
        else:
            numbers = "<u2" if len(positions) < (1 << 16) - 1 else "<u4"
            labels = _numbers(row[MERGE.name], numbers, MERGE.name)
            labels[labels == np.iinfo(numbers).max] = -1
            patches = _numbers(row[PATCHES.name], cells, PATCHES.name)
            found = cls(grid, positions, saliency, labels, patches)
        if len(found.labels) != len(found.patches) or found.labels.max(initial=-1) >= len(positions):
            raise FormatError(f"the column {MERGE.name} does not fit the codes; {_DAMAGED}")
        if max(found.patches.max(initial=-1), positions.max(initial=-1)) >= grid[0] * grid[1]:
            raise FormatError(f"patches outside the grid of {grid[0]} x {grid[1]}; {_DAMAGED}")
        return found


def _levels(saliency: NDArray[np.float32] | None, count: int) -> NDArray[np.uint8]:
    """uint8: 32 * log2(share) + 128, 0 where none is known."""
    if saliency is None:
        return np.zeros(count, np.uint8)
    levels = np.rint(32 * np.log2(np.maximum(saliency, 1e-9)) + 128)
    return np.asarray(np.clip(levels, 1, 255), np.uint8)


def _numbers(data: bytes | None, dtype: str, name: str) -> NDArray[np.int64]:
    if data is None or len(data) % np.dtype(dtype).itemsize:
        raise FormatError(f"the column {name} holds no whole numbers; {_DAMAGED}")
    return np.frombuffer(data, dtype).astype(np.int64)
