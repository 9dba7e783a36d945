"""Tiles of a grid: where they are, and reading one with a halo of its neighbours, or of a reduced grid.

A halo goes around the earth where the grid does; at poles and edges the outermost cells are repeated. A reduced grid
has one cell for each block of cells: their mean, and the shoalest of them, so that a coarse map hides no hazard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.sources.base import Sample
from tokenshard.sources.grids.attributes import plain_number
from tokenshard.sources.grids.opened import OpenGrid, valid_cells
from tokenshard.spec.grids import HALO, GridEntry, LayerEntry


@dataclass(frozen=True)
class Tile:
    """A rectangle of the cells of one level; a cell of level f covers f x f cells of the grid."""

    level: int
    row: int
    column: int
    y0: int
    x0: int
    height: int
    width: int


@dataclass(frozen=True)
class GridTile(Sample):
    """A tile that was read. ``data``: stored values of the elevation [height + 2 halo, width + 2 halo]."""

    grid: GridEntry = field(kw_only=True)
    tile: Tile = field(kw_only=True)
    valid: NDArray[np.bool_] = field(kw_only=True)
    """of the shape of the data; a repeated cell is as valid as the one it repeats"""
    layers: Mapping[str, NDArray[Any]] = field(kw_only=True)
    """stored values [height, width] of the other layers, by role"""
    shoalest: NDArray[Any] | None = field(default=None, kw_only=True)
    """[height, width] of a reduced grid: the shoalest stored value of each block"""

    @property
    def core(self) -> NDArray[Any]:
        """The stored values without the halo."""
        return inner(self.data, self.tile)

    @property
    def core_valid(self) -> NDArray[np.bool_]:
        return inner(self.valid, self.tile)


def inner(values: NDArray[Any], tile: Tile) -> NDArray[Any]:
    """What of an array with a halo is the tile itself."""
    return values[HALO : HALO + tile.height, HALO : HALO + tile.width]


def level_size(size: int, level: int) -> int:
    """Cells of an axis of the reduced grid."""
    return -(-size // level)


def tiles(height: int, width: int, side: int, level: int) -> Iterator[Tile]:
    """The tiles of one level of a grid, row by row; those of the last row and column may be smaller."""
    rows, columns = level_size(height, level), level_size(width, level)
    for row, y0 in enumerate(range(0, rows, side)):
        for column, x0 in enumerate(range(0, columns, side)):
            yield Tile(level, row, column, y0, x0, min(side, rows - y0), min(side, columns - x0))


def tile_at(entry: GridEntry, side: int, level: int, row: int, column: int) -> Tile:
    """One tile, by its place."""
    y0, x0 = row * side, column * side
    height, width = level_size(entry.height, level), level_size(entry.width, level)
    return Tile(level, row, column, y0, x0, min(side, height - y0), min(side, width - x0))


@dataclass(frozen=True)
class Read:
    """What :func:`read_tile` found."""

    data: NDArray[Any]
    valid: NDArray[np.bool_]
    layers: Mapping[str, NDArray[Any]]
    shoalest: NDArray[Any] | None


def read_tile(grid: OpenGrid, tile: Tile) -> Read:
    """Values of a tile with their halo, and the other layers without."""
    entry = grid.entry
    if tile.level == 1:
        data = _with_halo(grid, tile)
        rows = slice(tile.y0, tile.y0 + tile.height)
        columns = slice(tile.x0, tile.x0 + tile.width)
        others: dict[str, NDArray[Any]] = {
            layer.role: grid.read(number, rows, columns) for number, layer in enumerate(entry.layers) if number
        }
        return Read(data, valid_cells(data, entry.elevation), others, None)
    data, shoalest = _reduced(grid, tile)
    uncertainty = next((n for n, layer in enumerate(entry.layers) if layer.role == "uncertainty"), None)
    beside = {} if uncertainty is None else {"uncertainty": _largest(grid, tile, uncertainty)}
    return Read(data, valid_cells(data, entry.elevation), beside, inner(shoalest, tile))


def fill_of(layer: LayerEntry) -> Any:
    """The stored value that means: no value; NaN, or the first the layer has, in its type."""
    kind = np.dtype(layer.dtype)
    if layer.fills:
        return kind.type(plain_number(layer.fills[0]))
    return kind.type(np.nan) if kind.kind == "f" else kind.type(0)


def _with_halo(grid: OpenGrid, tile: Tile) -> NDArray[Any]:
    entry = grid.entry
    top, bottom = tile.y0 - HALO, tile.y0 + tile.height + HALO
    left, right = tile.x0 - HALO, tile.x0 + tile.width + HALO
    rows = slice(max(0, top), min(entry.height, bottom))
    values = _columns(grid, 0, rows, left, right)
    return _repeated(values, (rows.start - top, bottom - rows.stop), _missing(entry, left, right))


def _missing(entry: GridEntry, left: int, right: int) -> tuple[int, int]:
    """Columns before and behind the grid that no turn around the earth leads to."""
    return (0, 0) if entry.period else (max(0, -left), max(0, right - entry.width))


def _columns(grid: OpenGrid, layer: int, rows: slice, left: int, right: int) -> NDArray[Any]:
    """Columns ``left`` to ``right`` of some rows: around the earth where the grid goes, else as far as it goes."""
    width, period = grid.entry.width, grid.entry.period
    if not period:
        return grid.read(layer, rows, slice(max(0, left), min(width, right)))
    places = np.arange(left, right)
    outside = (places < 0) | (places >= width)
    places[outside] %= period
    cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    parts = [grid.read(layer, rows, slice(int(places[a]), int(places[b - 1]) + 1)) for a, b in pairwise(cuts)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _repeated(values: NDArray[Any], rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
    return np.pad(values, (rows, columns), mode="edge")


# -- reduced grids ----------------------------------------------------------------------------------------------------


def _blocks(grid: OpenGrid, tile: Tile, layer: int, halo: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Stored values of all cells under a tile and ``halo`` cells around it [rows, columns, level²], which are valid.

    Rows and columns as far as the grid goes; the cells that the last block lacks are not valid.
    """
    entry, level = grid.entry, tile.level
    height, width = level_size(entry.height, level), level_size(entry.width, level)
    first, last = max(0, tile.y0 - halo), min(height, tile.y0 + tile.height + halo)
    left, right = tile.x0 - halo, tile.x0 + tile.width + halo
    if not entry.period:
        left, right = max(0, left), min(width, right)
    rows = slice(first * level, min(entry.height, last * level))
    stop = right * level if entry.period and right > width else min(entry.width, right * level)
    values = _columns(grid, layer, rows, left * level, stop)
    valid = valid_cells(values, entry.layers[layer])
    short = ((0, (last - first) * level - values.shape[0]), (0, (right - left) * level - values.shape[1]))
    values, valid = np.pad(values, short, mode="edge"), np.pad(valid, short)
    shape = (last - first, level, right - left, level)
    flat = (last - first, right - left, level * level)
    return values.reshape(shape).swapaxes(1, 2).reshape(flat), valid.reshape(shape).swapaxes(1, 2).reshape(flat)


def _reduced(grid: OpenGrid, tile: Tile) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and shoalest stored value of each block of a tile with its halo."""
    entry, level = grid.entry, tile.level
    values, valid = _blocks(grid, tile, 0, HALO)
    counts = valid.sum(axis=2)
    sums = np.where(valid, values, 0).sum(axis=2, dtype=np.float64)
    means = sums / np.maximum(counts, 1)
    kind, fill = values.dtype, fill_of(entry.elevation)
    mean = np.where(counts > 0, np.rint(means) if kind.kind in "iu" else means, 0).astype(kind)
    mean[counts == 0] = fill
    shoalest = extreme(values, valid, rising=shoal_is_large(entry))
    shoalest[counts == 0] = fill
    height, width = level_size(entry.height, level), level_size(entry.width, level)
    rows = (max(0, HALO - tile.y0), max(0, tile.y0 + tile.height + HALO - height))
    columns = _missing_blocks(entry, width, tile)
    return _repeated(mean, rows, columns), _repeated(shoalest, rows, columns)


def _missing_blocks(entry: GridEntry, width: int, tile: Tile) -> tuple[int, int]:
    return (0, 0) if entry.period else (max(0, HALO - tile.x0), max(0, tile.x0 + tile.width + HALO - width))


def shoal_is_large(entry: GridEntry) -> bool:
    """Whether shoaler cells have larger stored values."""
    return (entry.positive == "up") == (entry.elevation.scale > 0)


def extreme(values: NDArray[Any], valid: NDArray[np.bool_], rising: bool) -> NDArray[Any]:
    """The largest valid value along the last axis (``rising``), or the smallest; anything where none is valid."""
    limits = np.finfo(values.dtype) if values.dtype.kind == "f" else np.iinfo(values.dtype)
    worst = values.dtype.type(limits.min if rising else limits.max)
    candidates = np.where(valid, values, worst)
    return np.asarray(candidates.max(axis=-1) if rising else candidates.min(axis=-1))


def _largest(grid: OpenGrid, tile: Tile, layer: int) -> NDArray[Any]:
    """The largest uncertainty of each block of a tile."""
    values, valid = _blocks(grid, tile, layer, 0)
    found = extreme(values, valid, rising=True)
    found[~valid.any(axis=2)] = fill_of(grid.entry.layers[layer])
    return found
