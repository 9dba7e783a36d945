"""Maps of grids: depths under a low sun with land in grey and cells without a value hatched, and widths in colours.

matplotlib (extra ``demo``) is imported when a map is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.grids.decode import GridDecoder
from tokenshard.grids.georeference import Box, Window
from tokenshard.grids.normalise import physical
from tokenshard.report.charts import INK, MUTED, plain_log_ticks
from tokenshard.sources.grids.opened import valid_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CELLS = 24_000_000
SEA = ("#0b1d3a", "#12407a", "#1f6fae", "#4fa3cf", "#98d3e6", "#c9f0ec")
"""Colours from the deepest to the shallowest cell."""
LAND = ("#8d8b84", "#c6c3ba")
ALTITUDE, AZIMUTH = math.radians(45), math.radians(315)
_HATCH = "/////"


@dataclass(frozen=True)
class Field:
    """Values ``[h, w]`` of a window with north up; ``extent``: west, east, south, north of its edges."""

    values: NDArray[np.float64]
    valid: NDArray[np.bool_]
    extent: tuple[float, float, float, float]
    geographic: bool


def depth_map(decoder: GridDecoder, path: str | Path, box: Box | None = None) -> None:
    """Draw the elevation (what the tokens say, where there is nothing else) into a PNG."""
    kind = "tokens" if decoder.bound == "none" else "elevation"
    field, heights = _field(decoder, kind, box), _metres(decoder)
    height = field.values * heights
    shade = _hillshade(height, field)
    wet = field.valid & (height < 0)
    figure, axis = _canvas(field)
    dry = field.valid & ~wet
    low, high = _depths(height[wet], bool(dry.any()))
    sea = _shaded(np.clip((height - low) / (high - low), 0, 1), SEA, shade)
    top = float(np.quantile(height[dry], 0.99)) if dry.any() else 1.0
    land = _shaded(np.clip(height / max(top, 1e-9), 0, 1), LAND, shade)
    picture = np.where(wet[..., None], sea, land)
    _draw(axis, field, picture)
    if wet.any():
        _colour_bar(figure, axis, SEA, low, high, "depth, m")
    _legend(axis, land=bool(dry.any()), empty=not bool(field.valid.all()))
    _title(axis, decoder, "tokens alone" if kind == "tokens" else _bound_text(decoder))
    figure.savefig(path, dpi=160, bbox_inches="tight")


def width_map(decoder: GridDecoder, path: str | Path, box: Box | None = None, band: str = "width") -> None:
    """Draw half-widths or uncertainty (`width`, `conformal` or `uncertainty`) into a PNG, on a log scale."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    field = _field(decoder, band, box)
    shown = field.valid & (field.values > 0)
    if not shown.any():
        raise SpecError(f"{decoder.entry.uri}: no {band} is above 0 there; nothing can be drawn")
    low, high = np.quantile(field.values[shown], (0.01, 0.995))
    low = max(float(low), float(high) / 1e4)
    scale, colours = LogNorm(low, max(float(high), low * 1.01)), colormaps["magma"]
    picture = colours(np.asarray(scale(np.where(shown, field.values, low)).filled(0.0)))[..., :3]
    figure, axis = _canvas(field)
    _draw(axis, field, picture)
    unit = decoder.entry.units or ""
    text = {"width": "half-width of the tokens", "conformal": "conformal half-width"}.get(band, "uncertainty (95 %)")
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axis, shrink=0.8, pad=0.02, extend="both")
    plain_log_ticks(bar.ax.yaxis)
    bar.set_label(f"{text}, {unit}".rstrip(", "), color=INK)
    bar.outline.set_visible(False)
    _legend(axis, land=False, empty=not bool(field.valid.all()))
    _title(axis, decoder, text)
    figure.savefig(path, dpi=160, bbox_inches="tight")


# -- what is drawn ----------------------------------------------------------------------------------------------------


def _depths(heights: NDArray[np.float64], coast: bool) -> tuple[float, float]:
    """Heights of the first and last colour of the sea: up to the water line where the map comes near it."""
    if not heights.size:
        return -1.0, 0.0
    low, high = (float(value) for value in np.quantile(heights, (0.002, 0.998)))
    high = 0.0 if coast or high > low / 4 else high
    return (low, high) if low < high else (high - 1.0, high)


def _field(decoder: GridDecoder, kind: str, box: Box | None) -> Field:
    reference = decoder.reference
    window = reference.whole if box is None else reference.window(box)
    height, width = window.shape
    if height * width > MOST_CELLS:
        raise SpecError(
            f"{decoder.entry.uri}: a map of {height:,} x {width:,} cells is too large; give a --bbox, or a --level "
            "that the dataset has"
        )
    (band,) = decoder.bands([kind])
    (values,) = decoder.read(window, [band])
    if band.layer is not None:
        valid = valid_cells(values, band.layer)
        values = physical(np.where(valid, values, values.dtype.type(0)), band.layer)
    else:
        values = values.astype(np.float64)
        valid = np.isfinite(values)
    extent = _extent(decoder, window)
    if extent[2] > extent[3]:  # rows from south to north
        values, valid = values[::-1], valid[::-1]
        extent = (extent[0], extent[1], extent[3], extent[2])
    return Field(np.where(valid, values, 0.0), valid, extent, decoder.entry.geographic)


def _extent(decoder: GridDecoder, window: Window) -> tuple[float, float, float, float]:
    """West, east, and y below the last row and above the first."""
    height, width = window.shape
    x, y = decoder.reference.x, decoder.reference.y
    if x is None or y is None:
        return 0.0, float(width), float(height), 0.0
    columns = x.at(np.arange(window.columns.start, window.columns.stop)).astype(np.float64)
    rows = y.at(np.arange(window.rows.start, window.rows.stop)).astype(np.float64)
    across = (columns[-1] - columns[0]) / max(1, width - 1) or 1.0
    down = (rows[-1] - rows[0]) / max(1, height - 1) or -1.0
    return columns[0] - across / 2, columns[-1] + across / 2, rows[-1] + down / 2, rows[0] - down / 2


def _metres(decoder: GridDecoder) -> float:
    """What values are multiplied by to be heights in metres."""
    size = decoder.entry.metres or 1.0
    return size if decoder.entry.positive == "up" else -size


def _hillshade(height: NDArray[np.float64], field: Field) -> NDArray[np.float64]:
    """``[h, w]`` from 0 to 1: how bright a cell is with the sun in the north-west. Steep maps are flattened."""
    if min(height.shape) < 2:
        return np.full(height.shape, 0.7)
    filled = np.where(field.valid, height, np.median(height[field.valid]) if field.valid.any() else 0.0)
    down, across = np.gradient(filled)
    aspect = _aspect(field)
    across = across * aspect
    both = field.valid & np.roll(field.valid, 1, 0) & np.roll(field.valid, 1, 1)
    steep = np.hypot(down, across)[both]
    typical = float(np.quantile(steep, 0.9)) if steep.size else 1.0
    down, across = down / max(typical, 1e-9), across / max(typical, 1e-9)
    down, across = np.where(both, down, 0.0), np.where(both, across, 0.0)
    # The angle between the sun and what stands upright on the surface; rows go south.
    east, north, up = math.sin(AZIMUTH), math.cos(AZIMUTH), math.sin(ALTITUDE)
    light = (math.cos(ALTITUDE) * (north * down - east * across) + up) / np.sqrt(1 + across**2 + down**2)
    bright: NDArray[np.float64] = np.clip(light, 0, 1)
    return bright


def _shaded(share: NDArray[np.float64], colours: tuple[str, ...], shade: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours ``[h, w, 3]``, darker away from the sun and lighter towards it."""
    from matplotlib.colors import LinearSegmentedColormap

    flat = LinearSegmentedColormap.from_list("", colours)(share)[..., :3]
    away = shade[..., None] / math.sin(ALTITUDE)
    lit: NDArray[np.float64] = np.where(away < 1, flat * (0.35 + 0.65 * away), flat + (1 - flat) * 0.6 * (away - 1))
    return np.clip(lit, 0, 1)


def _aspect(field: Field) -> float:
    """Height of a degree of latitude over the width of one of longitude, in the middle of the map."""
    middle = (field.extent[2] + field.extent[3]) / 2
    return 1 / max(math.cos(math.radians(min(abs(middle), 80.0))), 0.1) if field.geographic else 1.0


def _canvas(field: Field) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    west, east, south, north = field.extent
    tall = (north - south) * _aspect(field) / max(east - west, 1e-9)
    width = 8.0 if tall < 1 else max(4.0, 8.0 / tall)
    figure = Figure(figsize=(width + 1.2, min(8.0, max(2.6, width * tall)) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _draw(axis: Axes, field: Field, picture: NDArray[np.float64]) -> None:
    from matplotlib.patches import Rectangle

    west, east, south, north = field.extent
    axis.add_patch(
        Rectangle((west, south), east - west, north - south, facecolor="white", edgecolor="#b8bcc0", hatch=_HATCH, lw=0)
    )
    opaque = np.concatenate([picture, field.valid[..., None].astype(np.float64)], axis=2)
    axis.imshow(opaque, extent=field.extent, aspect=_aspect(field), interpolation="nearest", zorder=2)
    axis.set_xlim(west, east)
    axis.set_ylim(south, north)
    axis.tick_params(colors=MUTED, labelsize=8)
    for spine in axis.spines.values():
        spine.set_color("#868e96")
    if field.geographic:
        axis.xaxis.set_major_formatter(_degrees("EW"))
        axis.yaxis.set_major_formatter(_degrees("NS"))
    else:
        axis.ticklabel_format(style="plain", useOffset=False)


def _degrees(letters: str) -> Any:
    from matplotlib.ticker import FuncFormatter

    def text(value: float, _: Any) -> str:
        turned = (value + 180) % 360 - 180 if letters == "EW" else value
        letter = "" if turned in (0, -180) else letters[0] if turned > 0 else letters[1]
        return f"{abs(turned):.6g}°{letter}"

    return FuncFormatter(text)


def _colour_bar(figure: Figure, axis: Axes, colours: tuple[str, ...], low: float, high: float, label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.ticker import FuncFormatter

    scale = ScalarMappable(Normalize(low, high), LinearSegmentedColormap.from_list("", colours))
    bar = figure.colorbar(scale, ax=axis, shrink=0.8, pad=0.02, extend="min" if high == 0 else "both")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.6g}"))
    bar.set_label(label, color=INK)
    bar.outline.set_visible(False)


def _legend(axis: Axes, land: bool, empty: bool) -> None:
    from matplotlib.patches import Patch

    found = [Patch(facecolor=LAND[1], edgecolor="#868e96", label="land")] if land else []
    found += [Patch(facecolor="white", edgecolor="#b8bcc0", hatch=_HATCH, label="no data")] if empty else []
    if found:
        axis.legend(handles=found, loc="lower left", fontsize=8, framealpha=0.9, edgecolor="#ced4da").set_zorder(3)


def _bound_text(decoder: GridDecoder) -> str:
    return "lossless" if decoder.bound == "lossless" else f"within {decoder.bound}"


def _title(axis: Axes, decoder: GridDecoder, text: str) -> None:
    level = "" if decoder.level == 1 else f", level {decoder.level}"
    axis.set_title(f"{decoder.entry.uri}{level}: {text}", loc="left", fontsize=10, color=INK)
