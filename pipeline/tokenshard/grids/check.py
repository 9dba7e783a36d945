"""Holds a dataset of grids against the files it was made of: every cell, after decoding, in the unit of its bound."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError, TokenshardError
from tokenshard.grids.bounded import Bound
from tokenshard.grids.bounds import allowed
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.layers import decode_layer
from tokenshard.grids.normalise import physical
from tokenshard.shards.bounds import damage_reported
from tokenshard.sources.grids.open import file_sha256, open_grid
from tokenshard.sources.grids.opened import OpenGrid, valid_cells
from tokenshard.sources.grids.source import open_grid_source
from tokenshard.sources.grids.tiles import inner, read_tile, tile_at
from tokenshard.spec.grids import GridEntry, GridSourceSpec

SHOWN = 20
"""Errors that are named."""


@dataclass(frozen=True)
class BoundCheck:
    """What was found. ``max_error``: in the unit of the grids, as decoded here; ``max_share``: the largest error of a
    cell as a share of what its bound allows (0 where nothing is allowed and nothing is wrong)."""

    bound: str
    cells: int
    max_error: float
    max_share: float
    errors: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.errors


def check_bounds(
    dataset: GridDataset, source: str | None = None, storage: Mapping[str, Any] | None = None
) -> BoundCheck:
    """Decode all tiles and compare them with the source, by default where the dataset says it came from.

    Raises SpecError where there is no bound, or no source to be found.
    """
    manifest = dataset.dataset.manifest
    bound = str(manifest.preprocess.get("bound", "lossless"))
    if bound == "none":
        raise SpecError(f"{dataset.dataset.store.root}: holds tokens alone (--bound none); there is no bound to check")
    where = str(manifest.source.get("path", "")) if source is None else source
    cells, worst, share, errors = 0, 0.0, 0.0, []
    for key, stored in dataset.grids.items():
        opened = _opened(where, stored.entry, storage)
        try:
            for level in dataset.levels(key):
                for found in _level(dataset, key, level, opened):
                    cells, worst, share = cells + found.cells, max(worst, found.error), max(share, found.share)
                    errors += [found.wrong] if found.wrong else []
        finally:
            opened.close()
    return BoundCheck(bound, cells, worst, share, tuple(errors[:SHOWN]))


@dataclass(frozen=True)
class TileCheck:
    """Of one tile. ``wrong``: what is, if anything."""

    cells: int
    error: float
    share: float
    wrong: str = ""


def _level(dataset: GridDataset, grid: str, level: int, source: OpenGrid) -> Iterator[TileCheck]:
    entry, whole = dataset.grids[grid].entry, dataset.georeference(grid, level).whole
    for part in dataset.parts(grid, level, whole, ["max_error", "bound", "stream", "nodata"]):
        row = part.row
        tile = tile_at(entry, dataset.tile, level, row["tile_row"], row["tile_col"])
        title = f"{entry.uri}: tile {level}/{tile.row}/{tile.column}"
        with damage_reported(title):
            decoded, _ = decode_layer(row["stream"], row["nodata"], entry.elevation, (tile.height, tile.width))
        yield compare_tile(title, decoded, inner(read_tile(source, tile).data, tile), entry, row)


def compare_tile(
    title: str, decoded: NDArray[Any], true: NDArray[Any], entry: GridEntry, row: Mapping[str, Any]
) -> TileCheck:
    """Decoded against true stored values ``[h, w]``. ``row``: the tile's `bound` and `max_error`."""
    valid = valid_cells(true, entry.elevation)
    if (valid_cells(decoded, entry.elevation) != valid).any():
        return TileCheck(true.size, 0.0, 0.0, f"{title}: cells with a value are not those of the source")
    if decoded[~valid].tobytes() != true[~valid].tobytes():
        return TileCheck(true.size, 0.0, 0.0, f"{title}: cells without a value differ from the source")
    a, b = physical(decoded[valid], entry.elevation), physical(true[valid], entry.elevation)
    error = np.abs(a - b)
    error[decoded[valid] == true[valid]] = 0
    limit = allowed(Bound.parse(row["bound"]), entry, true[valid])
    last: NDArray[np.float64] | float = 0.0
    if true.dtype.kind == "f":
        last = np.spacing(np.abs(true[valid])).astype(np.float64) * abs(entry.elevation.scale)
    beyond = error > limit * (1 + 1e-9) + (last if row["bound"] != "lossless" else 0.0)
    worst = float(error.max(initial=0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = float(np.nan_to_num(error / limit, posinf=np.inf).max(initial=0.0))
    wrong = f"{title}: off by {worst:g}, more than {row['bound']} allows" if beyond.any() else ""
    if not wrong and worst > row["max_error"] * (1 + 1e-6) + float(np.max(last, initial=0.0)):
        wrong = f"{title}: off by {worst:g}, and its row says {row['max_error']:g}"
    return TileCheck(true.size, worst, share, wrong)


def _opened(where: str, entry: GridEntry, storage: Mapping[str, Any] | None) -> OpenGrid:
    """The grid in its source. Raises SpecError where that is not the one that was converted."""
    remedy = "name the file or folder it was converted from with --source"
    try:
        spec = GridSourceSpec(path=where or ".", variable=_variable(entry), crs=entry.crs)
        files = open_grid_source(spec, storage).files
        name = files.names[0] if files.what in {"file", "zarr"} else entry.uri
        opened = open_grid(files.store, name, spec)
    except (TokenshardError, OSError) as error:
        raise SpecError(f"{entry.uri}: cannot be read at {where!r} ({error}); {remedy}") from error
    if entry.form != "zarr" and file_sha256(files.store, [name])[1] != entry.source_sha256:
        opened.close()
        raise SpecError(f"{entry.uri}: the file at {where!r} is not the one that was converted; {remedy}")
    return opened


def _variable(entry: GridEntry) -> str | None:
    if entry.form in {"bag", "s102"}:
        return None
    number = re.fullmatch(r"band_?(\d+)", entry.elevation.name) if entry.form == "raster" else None
    return number[1] if number else entry.elevation.name
