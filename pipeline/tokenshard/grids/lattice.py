"""The lattice of patches that all tiles of a level share, and what of it lies around a tile.

Tokens depend on a ring of patches around a tile, never on how a grid is cut. Around the earth patches meet where a full
turn is a whole number of them; elsewhere, and at poles and edges, a tile has no neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.normalise import Normal, restored
from tokenshard.sources.grids.tiles import GridTile, Tile, level_size
from tokenshard.spec.grids import HALO, GridEntry
from tokenshard.tokenizers.grid_codes import Codes, LatticeTokenizer

CodesOf = Callable[[int, int], Codes | None]
"""Codes of the tile of a row and column of tiles, means in steps from zero on; None where there is none."""
Place = tuple[slice, slice]


@dataclass(frozen=True)
class Lattice:
    """The patches of one level of a grid."""

    rows: int
    columns: int
    west: int | None
    """columns of a turn, where those before the first are those a turn further east"""
    east: int | None
    """the same for columns behind the last"""

    @classmethod
    def of(cls, entry: GridEntry, level: int, patch: tuple[int, int]) -> Lattice:
        height, width = level_size(entry.height, level), level_size(entry.width, level)
        cells = level * patch[1]
        turn = entry.period // cells if entry.period and entry.period % cells == 0 else None
        whole = turn if turn is not None and turn * patch[1] == width else None
        return cls(-(-height // patch[0]), -(-width // patch[1]), turn, whole)

    def across(self, first: int, count: int) -> NDArray[np.int64]:
        """Columns of the lattice that stand in ``count`` columns from ``first`` on; -1: none."""
        places = np.arange(first, first + count)
        before = places + self.west if self.west is not None else np.full(count, -1)
        behind = places - self.east if self.east is not None else np.full(count, -1)
        found = np.where(places < 0, before, np.where(places >= self.columns, behind, places))
        return np.where((found >= 0) & (found < self.columns), found, -1)

    def down(self, first: int, count: int) -> NDArray[np.int64]:
        """The same for rows."""
        places = np.arange(first, first + count)
        return np.where((places >= 0) & (places < self.rows), places, -1)


def inside(ring: int, rows: int, columns: int) -> Place:
    """Of an array of patches with its ring, the tile itself."""
    return slice(ring, ring + rows), slice(ring, ring + columns)


def seen_cells(
    tile: GridTile, values: NDArray[np.float64], tokenizer: LatticeTokenizer
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cells of a tile in whole patches with a ring of patches around, and which of them are valid cells of the grid.

    ``values``: what the tile with its halo holds, in the unit of the grid.
    """
    patch = tokenizer.patch
    place, lattice = tile.tile, Lattice.of(tile.grid, tile.tile.level, patch)
    sides, ring = (place.height, place.width), tuple(tokenizer.ring * side for side in patch)
    shape = tuple(-(-side // step) * step + 2 * around for side, step, around in zip(sides, patch, ring, strict=True))
    found, there = np.zeros(shape), np.zeros(shape, np.bool_)
    take = tuple(slice(HALO - around, HALO + side + around) for side, around in zip(sides, ring, strict=True))
    cut = (slice(0, place.height + 2 * ring[0]), slice(0, place.width + 2 * ring[1]))
    found[cut], there[cut] = values[take], tile.valid[take]
    top, left = place.y0 - ring[0], place.x0 - ring[1]
    rows, columns = np.arange(top, top + shape[0]), np.arange(left, left + shape[1])
    within = (columns >= 0) & (columns < level_size(tile.grid.width, place.level))
    if lattice.west is not None:
        within |= columns < 0
    if lattice.east is not None:
        within |= columns >= 0
    there &= ((rows >= 0) & (rows < level_size(tile.grid.height, place.level)))[:, None] & within
    return found, there


def own_cells(
    tokenizer: LatticeTokenizer, ids: NDArray[np.integer[Any]], normal: Normal, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """What the ids of a tile alone decode to, without those around it: so that a row decodes by itself."""
    return restored(tokenizer.decode(ids[None], (shape[0], shape[1]))[0], normal)


def seen_codes(tokenizer: LatticeTokenizer, lattice: Lattice, tile: Tile, side: int, codes_of: CodesOf) -> Codes:
    """Codes of a tile and of the ring around it, put together from tiles of ``side`` cells."""
    patch, ring = tokenizer.patch, tokenizer.ring
    rows, columns = tokenizer.grid(tile.height, tile.width)
    down = lattice.down(tile.y0 // patch[0] - ring, rows + 2 * ring)
    across = lattice.across(tile.x0 // patch[1] - ring, columns + 2 * ring)
    shape = (len(down), len(across))
    there, means = np.zeros(shape, np.bool_), np.zeros(shape)
    gains = np.zeros(shape, np.int64)
    shapes = np.zeros((tokenizer.codebooks_of_shapes, *shape), np.int64)
    in_rows, in_columns = side // patch[0], side // patch[1]
    for row in np.unique(down[down >= 0] // in_rows):
        for column in np.unique(across[across >= 0] // in_columns):
            codes = codes_of(int(row), int(column))
            if codes is None:
                continue
            to = np.ix_((down >= 0) & (down // in_rows == row), (across >= 0) & (across // in_columns == column))
            of = np.ix_(down[to[0][:, 0]] % in_rows, across[to[1][0]] % in_columns)
            there[to], means[to], gains[to] = codes.there[of], codes.means[of], codes.gains[of]
            for mine, theirs in zip(shapes, codes.shapes, strict=True):
                mine[to] = theirs[of]
    return Codes(there, means, gains, shapes)
