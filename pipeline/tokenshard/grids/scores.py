"""Errors of decoded grids where the truth is known, cut into tiles: what widths are calibrated on, and tested on.

The truth is the bounded layer of the dataset itself (for what its tokens decode to), or another grid of the same cells:
of a dataset or of a file (for grids that were generated, super-resolved or filled).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.grids.bounded import Bound
from tokenshard.grids.bounds import allowed
from tokenshard.grids.conformal import Tile
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import GridDecoder
from tokenshard.grids.georeference import Georeference, Window
from tokenshard.grids.normalise import physical
from tokenshard.grids.strata import check_by, group_of, least_roughness, roughness_of
from tokenshard.shards.dataset import open_dataset
from tokenshard.shards.manifest import list_versions
from tokenshard.sources.grids.open import is_zarr, open_grid
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.sources.grids.sidecar import StoredGrid
from tokenshard.spec.grids import GridEntry, GridSourceSpec
from tokenshard.store import Store

SIDE = 64
"""Cells of a side of a tile: what intervals draw again."""
MOST_TILES = 4096
"""Tiles of a region that are looked at, spread evenly over it."""
_STEP_SHARE = 1e-3

Cells = tuple[NDArray[np.float64], NDArray[np.bool_]]
Truth = Callable[[Window], Cells]
"""True values of a window of level 1 in the unit of the grid, and which cells have any."""


@dataclass(frozen=True)
class Region:
    """A grid whose truth is known. ``squares``: errors ``[n, 64, 64]`` of the tiles without a gap; ``exact``: of each
    tile, which of its cells lie within the widths that were measured when it was encoded, where it has any."""

    grid: str
    name: str
    tiles: list[Tile]
    squares: NDArray[np.float64]
    exact: list[NDArray[np.bool_]]


def read_region(dataset: GridDataset, grid: str, band: str, by: Sequence[str], truth: Truth | None = None) -> Region:
    """The tiles of a grid. ``band``: `tokens` or `elevation`, what is wrong; ``truth``: None for the bounded layer,
    whose own bound then counts as error, too: the true values may lie that far beyond it.

    Raises SpecError where there is no truth, or the grid does not know what it is told apart by.
    """
    decoder = GridDecoder(dataset, grid)
    entry = decoder.entry
    check_by(entry, by)
    if truth is None and (band != "tokens" or decoder.bound == "none"):
        raise SpecError(
            f"{entry.uri}: {'holds tokens alone' if decoder.bound == 'none' else 'cannot be its own truth'}; give a "
            "dataset or a file with the true values"
        )
    kinds = [band, *(["elevation"] if truth is None else []), *(["source"] if "tid" in by else [])]
    lossless = truth is None and decoder.bound == "lossless"
    kinds += ["width"] if band == "tokens" and lossless else []
    bands = decoder.bands(kinds)
    tiles: list[Tile] = []
    squares: list[NDArray[np.float64]] = []
    exact: list[NDArray[np.bool_]] = []
    least = least_roughness(entry, decoder.token_step if band == "tokens" else None)
    every = max(1, -(-entry.height // SIDE) * -(-entry.width // SIDE) // MOST_TILES)
    for strip, arrays in decoder.strips(decoder.reference.whole, bands):
        read = dict(zip(kinds, arrays, strict=True))
        decoded, there = _decoded(read[band], band, entry)
        true, known = _known(read["elevation"], entry) if truth is None else truth(strip)
        valid = there & known
        error = np.where(valid, decoded - true, 0.0)
        if truth is None and not lossless:
            stored = np.where(known, read["elevation"], read["elevation"].dtype.type(0))
            error += np.where(valid, np.copysign(allowed(Bound.parse(decoder.bound), entry, stored), error), 0.0)
        rough = roughness_of(decoded, there, least)
        group = group_of(decoded, read.get("source"), entry, by)
        for place in _squares(strip, every):
            ok = valid[place]
            if not ok.any():
                continue
            tiles.append(Tile(error[place][ok], rough[place][ok], None if group is None else group[place][ok]))
            if ok.all() and ok.size == SIDE * SIDE:
                squares.append(error[place])
            if "width" in read:
                exact.append((np.abs(error) <= read["width"])[place][ok])
    return Region(grid, entry.uri, tiles, np.array(squares).reshape(-1, SIDE, SIDE), exact)


def _squares(strip: Window, every: int) -> Iterator[tuple[slice, slice]]:
    height, width = strip.shape
    across = -(-width // SIDE)
    for top in range(0, height, SIDE):
        for number, left in enumerate(range(0, width, SIDE)):
            if ((strip.rows.start + top) // SIDE * across + number) % every == 0:
                yield slice(top, min(top + SIDE, height)), slice(left, min(left + SIDE, width))


def _decoded(values: NDArray[Any], band: str, entry: GridEntry) -> Cells:
    if band == "tokens":
        return values.astype(np.float64), np.isfinite(values)
    return _known(values, entry)


def _known(stored: NDArray[Any], entry: GridEntry) -> Cells:
    valid = valid_cells(stored, entry.elevation)
    return physical(np.where(valid, stored, stored.dtype.type(0)), entry.elevation), valid


# -- truth from elsewhere ---------------------------------------------------------------------------------------------


def truth_of(dataset: GridDataset, grid: str, where: str, storage: Mapping[str, Any] | None = None) -> Truth:
    """The true values of a grid from another dataset (its grid of the same name, or its only one) or from a file.

    Raises SpecError where the cells are not the same ones.
    """
    stored = dataset.grids[grid]
    if list_versions(Store(where, storage)):
        other = GridDataset(open_dataset(where, storage))
        decoder = GridDecoder(other, _namesake(other, stored.entry.uri))
        _check_same_cells(stored, other.grids[decoder.grid], where)
        bands, change = decoder.bands(["elevation"]), _change(decoder.entry, stored.entry, where)

        def from_dataset(window: Window) -> Cells:
            values, valid = _known(decoder.read(window, bands)[0], decoder.entry)
            return values * change, valid

        return from_dataset
    folder, _, name = where.rstrip("/").rpartition("/")
    store = Store(folder or ("/" if where.startswith("/") else "."), storage)
    if not is_zarr(name) and not store.exists(name):
        raise SpecError(f"{where}: is no dataset and no file; give one with the true values of {stored.entry.uri}")
    opened = open_grid(store, name, GridSourceSpec(path=where))
    _check_same_cells(stored, StoredGrid(opened.entry, opened.x, opened.y), where)
    unit = _change(opened.entry, stored.entry, where)

    def from_file(window: Window) -> Cells:
        values, valid = _known(opened.read(0, window.rows, window.columns), opened.entry)
        return values * unit, valid

    return from_file


def _namesake(dataset: GridDataset, uri: str) -> str:
    found = [key for key, stored in dataset.grids.items() if stored.entry.uri == uri]
    return found[0] if found else dataset.choose(None)


def _check_same_cells(a: StoredGrid, b: StoredGrid, where: str) -> None:
    if (a.entry.height, a.entry.width) != (b.entry.height, b.entry.width):
        raise SpecError(
            f"{where}: has {b.entry.height} x {b.entry.width} cells, {a.entry.uri} {a.entry.height} x {a.entry.width}; "
            "both must be of the same cells: resample one to the other"
        )
    ours, theirs = Georeference(a, 1), Georeference(b, 1)
    for mine, other in ((ours.x, theirs.x), (ours.y, theirs.y)):
        if mine is None or other is None or mine.step is None:
            continue
        if np.abs(mine.values.astype(np.float64) - other.values).max() > _STEP_SHARE * abs(mine.step):
            raise SpecError(f"{where}: its cells lie elsewhere than those of {a.entry.uri}; resample one to the other")


def _change(there: GridEntry, here: GridEntry, where: str) -> float:
    """What values of a grid are multiplied by to be in the unit of another."""
    if (there.metres is None) != (here.metres is None):
        raise SpecError(f"{where}: has the unit {there.units!r}, {here.uri} {here.units!r}; convert one of them")
    size = (there.metres or 1.0) / (here.metres or 1.0)
    return size if there.positive == here.positive else -size
