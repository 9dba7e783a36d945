"""A dataset of grids: which grids and levels it has, and windows of them decoded from the tiles that cover them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.grids.georeference import Georeference, Window
from tokenshard.shards.dataset import Dataset, read_sidecar
from tokenshard.sources.grids.sidecar import StoredGrid, read_grids
from tokenshard.sources.grids.source import PLACES
from tokenshard.sources.grids.tiles import level_size

PLACED = ("grid", *PLACES, "height", "width")


@dataclass(frozen=True)
class Part:
    """A tile that a window needs, and where it goes."""

    row: dict[str, Any]
    """its columns"""
    inside: tuple[slice, slice]
    """of the tile"""
    place: tuple[slice, slice]
    """in the window"""


class GridDataset:
    """The grids of a dataset. Raises SpecError for a dataset of anything else."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        if dataset.manifest.kind != "grid" or not dataset.manifest.sidecars:
            raise SpecError(
                f"{dataset.store.root}: holds no grids but samples of kind {dataset.manifest.kind}; give a dataset "
                "that `tokenshard convert grids` wrote"
            )
        self.tile = int(dataset.manifest.preprocess.get("tile", 256))  # type: ignore[arg-type]

    @cached_property
    def grids(self) -> dict[str, StoredGrid]:
        """Descriptions by id, of the grids that have tiles."""
        found: dict[str, StoredGrid] = {}
        store, manifest = self.dataset.store, self.dataset.manifest
        for path in manifest.sidecars:
            found |= read_grids(read_sidecar(store, manifest, path), store.url(path))
        present = set(self._places["grid"].unique().to_pylist())
        if unknown := present - found.keys():
            raise FormatError(f"{store.root}: tiles of grid {min(unknown)}, which no file in grids/ describes")
        return {name: grid for name, grid in found.items() if name in present}

    @cached_property
    def _places(self) -> pa.Table:
        return self.dataset.table(PLACED)

    @cached_property
    def _index(self) -> dict[tuple[str, int], dict[tuple[int, int], int]]:
        """(grid, level) -> (tile row, tile column) -> number of the sample."""
        columns = [self._places[name].to_pylist() for name in ("grid", "level", "tile_row", "tile_col")]
        found: dict[tuple[str, int], dict[tuple[int, int], int]] = {}
        for number, (grid, level, row, column) in enumerate(zip(*columns, strict=True)):
            found.setdefault((grid, level), {})[row, column] = number
        return found

    def choose(self, name: str | None) -> str:
        """The id of a grid, given that, its path or the end of its path; of the only one where no name is given."""
        if name is None and len(self.grids) == 1:
            return next(iter(self.grids))
        named = {key: grid.entry.uri for key, grid in self.grids.items()}
        if name is not None:
            found = [key for key, uri in named.items() if name in (key, uri) or uri.endswith(f"/{name}")]
            if len(found) == 1:
                return found[0]
        listed = ", ".join(f"{uri} ({key})" for key, uri in list(named.items())[:20])
        what = "several grids" if name is None else f"no one grid {name!r}"
        raise SpecError(f"{self.dataset.store.root}: {what}; choose one with --grid: {listed}")

    def levels(self, grid: str) -> list[int]:
        """The levels of a grid that are stored."""
        return sorted(level for key, level in self._index if key == grid)

    def georeference(self, grid: str, level: int = 1) -> Georeference:
        """Where the cells of a level are. Raises SpecError where it is not stored."""
        if level not in self.levels(grid):
            stored = ", ".join(map(str, self.levels(grid)))
            raise SpecError(
                f"{self.dataset.store.root}: level {level} of {self.grids[grid].entry.uri} is not stored; there are: "
                f"{stored}"
            )
        return Georeference(self.grids[grid], level)

    def parts(self, grid: str, level: int, window: Window, columns: Sequence[str]) -> Iterator[Part]:
        """The tiles of a window, each row group read once. Tiles that were rejected are left out."""
        places = self._covering(grid, level, window)
        group_of = np.searchsorted(self.dataset.group_starts, [number for number, _ in places], "right") - 1
        for group in dict.fromkeys(group_of.tolist()):
            mine = [place for place, own in zip(places, group_of.tolist(), strict=True) if own == group]
            first = int(self.dataset.group_starts[group])
            table = self.dataset.group_table(group, [*PLACED, *columns])
            for number, spans in mine:
                row = table.slice(number - first, 1).to_pylist()[0]
                for inside, place in spans:
                    yield Part(row, inside, place)

    def tokens_of(self, grid: str, level: int, row: int, column: int) -> tuple[NDArray[Any], float] | None:
        """Ids [levels, rows, columns] of a tile and its mean; None where the dataset has no such tile."""
        number = self._index[grid, level].get((row, column))
        if number is None:
            return None
        return np.asarray(self.dataset.codes([number])[0]), float(self._means[number])

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        means: NDArray[np.float64] = self.dataset.table(["mean"])["mean"].to_numpy()
        return means

    def _covering(
        self, grid: str, level: int, window: Window
    ) -> list[tuple[int, list[tuple[tuple[slice, slice], tuple[slice, slice]]]]]:
        """(sample, [(part of the tile, part of the window)]) of the tiles that a window touches, in stored order."""
        entry, side = self.grids[grid].entry, self.tile
        index = self._index[grid, level]
        width = level_size(entry.width, level)
        reference = Georeference(self.grids[grid], level)
        period = reference.x.period if reference.x is not None else None
        found: dict[int, list[tuple[tuple[slice, slice], tuple[slice, slice]]]] = {}
        for top, bottom in _cut(window.rows.start, window.rows.stop, side):
            for left, right, start in _column_runs(window.columns, width, period, side):
                number = index.get((top // side, left // side))
                if number is None:
                    continue
                inside = (_within(top, bottom, side), _within(left, right, side))
                rows = slice(top - window.rows.start, bottom - window.rows.start)
                place = (rows, slice(start, start + right - left))
                found.setdefault(number, []).append((inside, place))
        return sorted(found.items())


def _cut(start: int, stop: int, side: int) -> Iterator[tuple[int, int]]:
    """A range in pieces that lie in one tile each."""
    while start < stop:
        end = min(stop, (start // side + 1) * side)
        yield start, end
        start = end


def _column_runs(columns: slice, width: int, period: int | None, side: int) -> Iterator[tuple[int, int, int]]:
    """(first column, last + 1, place in the window) of pieces of one tile each, around the earth where that goes."""
    place, at = 0, columns.start
    while at < columns.stop:
        inside = 0 <= at < width
        if not inside and period is None:
            raise ValueError("columns outside of a grid that does not go around the earth")
        first = at if inside or period is None else at % period
        end = width if inside or period is None else period
        run = min(columns.stop - at, end - first)
        for left, right in _cut(first, first + run, side):
            yield left, right, place + left - first
        at, place = at + run, place + run


def _within(start: int, stop: int, side: int) -> slice:
    return slice(start % side, start % side + stop - start)
