"""The columns of a tile beside its tokens: cells within a bound, other layers, and figures to select tiles by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.bounded import Bound
from tokenshard.grids.bounds import stored_bound
from tokenshard.grids.layers import LOSSLESS, Coded, code_layer, shifted_to_shoal
from tokenshard.grids.normalise import Normal, physical
from tokenshard.grids.widths import encode_widths, exact_widths
from tokenshard.sources.base import MadeColumn
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.sources.grids.tiles import GridTile, shoal_is_large
from tokenshard.spec.grids import GridEntry

MADE = (
    MadeColumn("mean", "double"),
    MadeColumn("log2gain", "int16"),
    MadeColumn("bound", "string"),
    MadeColumn("max_error", "double"),
    MadeColumn("predictor", "string"),
    MadeColumn("zmin", "double"),
    MadeColumn("zmax", "double"),
    MadeColumn("n_valid", "int32"),
    MadeColumn("width_kind", "string"),
    MadeColumn("width_q", "binary"),
    MadeColumn("stream", "binary"),
    MadeColumn("nodata", "binary"),
    MadeColumn("shoalest", "binary"),
    MadeColumn("uncertainty", "binary"),
    MadeColumn("source", "binary"),
)
COVERAGE = 0.9
WIDTHS = "exact_q90"
"""Widths hold this share of the true values of every block, whatever they are: the encoder has seen them."""
STREAMS = tuple(column.name for column in MADE if column.type == "binary")


def row_of(
    tile: GridTile,
    normal: Normal,
    decoded: NDArray[np.float64],
    bound: str,
    guide: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """The columns of a tile. ``decoded``: what its tokens and those around decode to, in the unit of the grid.

    ``guide``: what its own tokens alone decode to, where its cells may be coded together with them.
    """
    entry, layer = tile.grid, tile.grid.elevation
    stored, valid = tile.core, tile.core_valid
    found = physical(stored[valid], layer)
    row: dict[str, Any] = dict.fromkeys(column.name for column in MADE)
    row |= {
        "mean": normal.mean,
        "log2gain": normal.log2gain,
        "bound": bound,
        "zmin": float(found.min()) if len(found) else None,
        "zmax": float(found.max()) if len(found) else None,
        "n_valid": len(found),
        "width_kind": WIDTHS,
        "width_q": encode_widths(exact_widths(physical(stored, layer) - decoded, valid, COVERAGE)),
    }
    if bound == "none":
        return row
    wanted = stored_bound(Bound.parse(bound), entry, stored[valid])
    coded = code_layer(stored, valid, layer, wanted, guide)
    row |= {
        "max_error": coded.max_error * abs(layer.scale),
        "predictor": coded.predictor,
        "stream": coded.stream,
        "nodata": coded.nodata,
    }
    if tile.shoalest is not None:
        row["shoalest"] = _shoalest(tile.shoalest, entry, Bound.parse(bound)).joined()
    for role, values in tile.layers.items():
        own = entry.layer(role)
        assert own is not None, "read by its entry"
        row[role] = code_layer(values, valid_cells(values, own), own, LOSSLESS).joined()
    return row


def _shoalest(stored: NDArray[Any], entry: GridEntry, bound: Bound) -> Coded:
    valid = valid_cells(stored, entry.elevation)
    own = stored_bound(bound, entry, stored[valid])
    moved, own = shifted_to_shoal(stored, valid, shoal_is_large(entry), own)
    if (valid_cells(moved, entry.elevation) != valid).any():  # one has become a fill value
        moved, own = stored, LOSSLESS
    return code_layer(moved, valid, entry.elevation, own)
