"""Charts of how sure grids are, and what that costs; each with the file of its figures beside it.

matplotlib (extra ``demo``) is imported when a chart is drawn.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.grids.bounded import Bound, encode_tile
from tokenshard.grids.bounds import allowed
from tokenshard.grids.coverage import Found
from tokenshard.grids.decode import GridDecoder
from tokenshard.grids.normalise import physical
from tokenshard.grids.scores import Truth
from tokenshard.report.charts import INK, MUTED, plain_log_ticks
from tokenshard.report.grid_peers import installed
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.spec.grids import TVU_ORDERS, GridEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSES = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151")
"""Smooth to rough; of more classes, colours between."""
CODECS = {"tokenshard": "#e4572e", "SZ3": "#4c78a8", "JPEG XL": "#72b7b2", "LERC+zstd": "#b279a2", "ZFP": "#adb5bd"}
MOST_POINTS = 40_000
SIDE = 512
"""Cells of the side of what codecs are compared on, at most."""
SHARES = (2e-4, 1e-3, 3e-3, 1e-2)
"""Bounds of a comparison without others: shares of the range of values."""


def reliability_chart(found: Sequence[Found], path: str | Path) -> Path:
    """Draw coverage at each nominal level, a panel a region: all cells with their 95 % band over tiles, and each class.

    ``found``: of one method. Returns the CSV beside the chart.
    """
    regions = list(dict.fromkeys(line.region for line in found))
    figure, panels = _canvas(len(regions), 4.4)
    table: list[dict[str, Any]] = []
    for region, axis in zip(regions, panels, strict=True):
        lines = sorted((line for line in found if line.region == region), key=lambda line: line.nominal)
        table += [row for line in lines for row in _reliability_rows(line)]
        nominal = [100 * line.nominal for line in lines]
        axis.plot([0, 100], [0, 100], color="#adb5bd", lw=1, zorder=1)
        for number in range(len(lines[0].by_class)):
            shares = [100 * line.by_class[number].share for line in lines]
            low = [100 * line.by_class[number].low for line in lines]
            high = [100 * line.by_class[number].high for line in lines]
            colour = _class_colour(number, len(lines[0].by_class))
            axis.fill_between(nominal, low, high, color=colour, alpha=0.12, lw=0)
            axis.plot(nominal, shares, color=colour, lw=1, label=_class_name(number, len(lines[0].by_class)))
        whole = [line.whole for line in lines]
        errors = [[100 * (one.share - one.low) for one in whole], [100 * (one.high - one.share) for one in whole]]
        axis.errorbar(
            nominal, [100 * one.share for one in whole], errors, color="#e4572e", fmt="o-", ms=4, lw=1.6, capsize=2.5,
            label="all cells", zorder=4,
        )  # fmt: skip
        axis.set_xlim(45, 101)
        least = min(part.share for line in found for part in (line.whole, *line.by_class) if part.num_cells)
        axis.set_ylim(min(45, 5 * (20 * least // 1)), 101)
        tiles = max(one.num_tiles for one in whole)
        _style(axis, f"{region}: {tiles:,} tiles", "wanted: cells within their width, %")
    panels[0].set_ylabel("found, %", color=INK)
    panels[-1].legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(path, dpi=160, bbox_inches="tight")
    return _write(table, path)


def tvu_chart(decoder: GridDecoder, truth: Truth, path: str | Path, order: str = "1a") -> Path:
    """Draw the errors of decoded cells against depth, with the bound and the total vertical uncertainty of an order.

    Cells without an error are not drawn, but counted. Returns the CSV of the drawn cells.
    """
    entry = decoder.entry
    if entry.metres is None:
        raise SpecError(f"{entry.uri}: has the unit {entry.units!r}; uncertainty of depths is for heights")
    depth, error, limit = _errors(decoder, truth, entry)
    a, b = TVU_ORDERS[order]
    reach = np.geomspace(1, max(float(depth.max()), 10.0), 200)
    figure, (axis,) = _canvas(1, 5.6)
    wrong = error > 0
    axis.scatter(
        np.maximum(depth[wrong], 1), error[wrong], s=3, color="#4c78a8", alpha=0.25, lw=0, rasterized=True, zorder=2
    )
    order_of = np.argsort(depth)
    axis.plot(np.maximum(depth[order_of], 1), limit[order_of], color="#e4572e", lw=1.6, label=f"bound: {decoder.bound}")
    axis.plot(reach, np.sqrt(a * a + (b * reach) ** 2), color=INK, lw=1.4, label=f"TVU of order {order}")
    axis.set_xscale("log")
    axis.set_yscale("log")
    least = min(float(error[wrong].min(initial=np.inf)), float(limit[limit > 0].min(initial=np.inf)), a)
    axis.set_ylim(max(least / 2, 1e-4), None)
    for side in (axis.xaxis, axis.yaxis):
        plain_log_ticks(side)
    share = float(np.max(error / np.sqrt(a * a + (b * depth) ** 2)))
    _style(axis, f"{entry.uri}: at most {share:.3g} of the TVU of order {order}", "depth, m (land: 1)")
    axis.set_ylabel("error of a decoded cell, m", color=INK)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(path, dpi=160, bbox_inches="tight")
    rows = [
        {"depth": f"{d:.6g}", "error": f"{e:.6g}", "bound": f"{w:.6g}"}
        for d, e, w in zip(depth.tolist(), error.tolist(), limit.tolist(), strict=True)
    ]
    return _write(rows, path)


@dataclass(frozen=True)
class Rate:
    """What a codec makes of a part of a grid."""

    codec: str
    bound: float
    bits_per_cell: float
    max_error: float
    rmse: float


def rate_distortion_chart(decoder: GridDecoder, path: str | Path, bounds: Sequence[float] = ()) -> list[Rate]:
    """Encode the middle of a grid within several bounds, by this package and the peers that are installed, and draw
    bits a cell against the largest error that was asked for, and against the root of the mean square that comes of it.
    A CSV of the figures lies beside the chart."""
    if decoder.bound != "lossless":
        raise SpecError(f"{decoder.entry.uri}: codecs are compared on true values; convert with --bound lossless")
    stored, valid = _middle(decoder)
    found = compare_rates(stored, valid, bounds)
    figure, panels = _canvas(2, 4.6)
    unit = decoder.entry.units or "unit of the file"
    height, width = stored.shape
    for axis, name, below in zip(panels, ("bound", "rmse"), (f"largest error, {unit}", f"RMSE, {unit}"), strict=True):
        for codec, colour in CODECS.items():
            line = [rate for rate in found if rate.codec == codec]
            errors, bits = [getattr(rate, name) for rate in line], [rate.bits_per_cell for rate in line]
            wide = 2.2 if codec == "tokenshard" else 1.3
            axis.plot(errors, bits, "o-", color=colour, lw=wide, ms=4, label=codec if line else None)
        axis.set_xscale("log")
        axis.set_ylim(0, None)
        plain_log_ticks(axis.xaxis)
        _style(axis, f"{decoder.entry.uri}: {height:,} × {width:,} cells" if name == "bound" else "", below)
    panels[0].set_ylabel("bits a cell", color=INK)
    panels[1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=160, bbox_inches="tight")
    _write([vars(rate) for rate in found], path)
    return found


def compare_rates(stored: NDArray[Any], valid: NDArray[np.bool_], bounds: Sequence[float] = ()) -> list[Rate]:
    """Bits a valid cell and errors of stored values ``[h, w]`` within each bound, in stored units."""
    exact = stored.astype(np.float64)[valid]
    steps = bounds or [share * float(exact.max() - exact.min()) for share in SHARES]
    found = []
    for most in steps:
        sizes: dict[str, tuple[int, NDArray[Any]]] = {}
        ours = [
            encode_tile(stored[y : y + 256, x : x + 256], Bound("abs", most), valid=valid[y : y + 256, x : x + 256])
            for y in range(0, stored.shape[0], 256)
            for x in range(0, stored.shape[1], 256)
        ]
        sizes["tokenshard"] = sum(len(tile.stream) for tile in ours), _decoded(ours, stored.shape)
        for name, peer in installed().items():
            made = peer(stored, valid, most)
            if made is not None:
                sizes[name] = made
        for name, (size, decoded) in sizes.items():
            error = np.abs(decoded.astype(np.float64)[valid] - exact)
            rmse = float(np.sqrt(np.mean(error * error)))
            found.append(Rate(name, most, 8 * size / exact.size, float(error.max()), rmse))
    return found


# -- what is measured -------------------------------------------------------------------------------------------------


def _errors(
    decoder: GridDecoder, truth: Truth, entry: GridEntry
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Depth, error and bound of cells in metres, evenly drawn from all rows of tiles."""
    bands, parts = decoder.bands(["elevation"]), []
    height, width = decoder.reference.whole.shape
    every = max(1, height * width // MOST_POINTS)
    for strip, (stored,) in decoder.strips(decoder.reference.whole, bands):
        true, known = truth(strip)
        valid = valid_cells(stored, entry.elevation) & known
        chosen = np.flatnonzero(valid)[::every]
        kept, exact = stored.ravel()[chosen], true.ravel()[chosen]
        bound = allowed(Bound.parse(decoder.bound), entry, (exact - entry.elevation.offset) / entry.elevation.scale)
        parts.append(np.stack([exact, np.abs(physical(kept, entry.elevation) - exact), bound]) * (entry.metres or 1.0))
    heights, error, limit = np.concatenate(parts, axis=1)
    if not heights.size:
        raise SpecError(f"{entry.uri}: no cell has a value in both grids")
    return np.maximum(-heights if entry.positive == "up" else heights, 0.0), error, limit


def _middle(decoder: GridDecoder) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    from tokenshard.grids.georeference import Window

    height, width = decoder.reference.whole.shape
    top, left = max(0, height - SIDE) // 2, max(0, width - SIDE) // 2
    window = Window(slice(top, min(height, top + SIDE)), slice(left, min(width, left + SIDE)))
    (stored,) = decoder.read(window, decoder.bands(["elevation"]))
    valid = valid_cells(stored, decoder.entry.elevation)
    if not valid.any():
        raise SpecError(f"{decoder.entry.uri}: no cell in its middle has a value")
    return stored, valid


def _decoded(tiles: Sequence[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    from tokenshard.grids.bounded import decode_tile

    parts = [decode_tile(tile.stream)[0] for tile in tiles]
    across = -(-shape[1] // 256)
    return np.vstack([np.hstack(parts[row : row + across]) for row in range(0, len(parts), across)])


# -- how it looks -----------------------------------------------------------------------------------------------------


def _canvas(panels: int, side: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * panels + 0.4, side + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _style(axis: Axes, title: str, below: str) -> None:
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.set_xlabel(below, color=INK)
    axis.tick_params(colors=MUTED, labelsize=8)
    axis.grid(color="#e9ecef", lw=0.7, zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#ced4da")


def _class_colour(number: int, classes: int) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", CLASSES)(number / max(1, classes - 1))


def _class_name(number: int, classes: int) -> str:
    if classes == 1:
        return "one class"
    return {0: "smoothest", classes - 1: "roughest"}.get(number, f"class {number + 1}")


def _reliability_rows(line: Found) -> list[dict[str, Any]]:
    named = [("all", line.whole), *((str(number + 1), part) for number, part in enumerate(line.by_class))]
    return [
        {
            "region": line.region,
            "class": name,
            "nominal": line.nominal,
            "found": part.share,
            "low": part.low,
            "high": part.high,
            "cells": part.num_cells,
            "tiles": part.num_tiles,
        }
        for name, part in named
    ]


def _write(rows: Sequence[dict[str, Any]], chart: str | Path) -> Path:
    path = Path(chart).with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
