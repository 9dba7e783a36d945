"""Maps of grids: depths under a low sun with land in grey and cells without a value hatched, and widths in colours.

matplotlib (extra ``demo``) is imported when a map is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.decode import GridDecoder
from tokenshard.grids.georeference import Box
from tokenshard.report.charts import INK, MUTED, plain_log_ticks
from tokenshard.report.relief import LAND, SEA, Field, aspect, read_field, relief, width_range, window_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HATCH = "/////"


def depth_map(decoder: GridDecoder, path: str | Path, box: Box | None = None) -> None:
    """Draw the elevation (what the tokens say, where there is nothing else) into a PNG."""
    kind = "tokens" if decoder.bound == "none" else "elevation"
    field = read_field(decoder, kind, window_of(decoder, box))
    drawn = relief(decoder, field)
    figure, axis = _canvas(field)
    _draw(axis, field, drawn.picture)
    if drawn.wet:
        _colour_bar(figure, axis, SEA, drawn.low, drawn.high, "depth, m")
    _legend(axis, land=drawn.dry, empty=not bool(field.valid.all()))
    _title(axis, decoder, "tokens alone" if kind == "tokens" else _bound_text(decoder))
    figure.savefig(path, dpi=160, bbox_inches="tight")


def width_map(decoder: GridDecoder, path: str | Path, box: Box | None = None, band: str = "width") -> None:
    """Draw half-widths or uncertainty (`width`, `conformal` or `uncertainty`) into a PNG, on a log scale."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    field = read_field(decoder, band, window_of(decoder, box))
    shown = field.valid & (field.values > 0)
    low, high = width_range(decoder, field, band)
    scale, colours = LogNorm(low, high), colormaps["magma"]
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


def _canvas(field: Field) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    west, east, south, north = field.extent
    tall = (north - south) * aspect(field) / max(east - west, 1e-9)
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
    axis.imshow(opaque, extent=field.extent, aspect=aspect(field), interpolation="nearest", zorder=2)
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
