"""Charts of what a dataset costs and keeps. matplotlib (extra ``demo``) is imported when a chart is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenshard.readable import readable_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLOURS = {"raw": "#adb5bd", "jpeg": "#4c78a8", "tokens": "#e4572e"}
_OTHER_COLOUR = "#72b7b2"
INK, MUTED = "#212529", "#5f666e"


@dataclass(frozen=True)
class StorageRow:
    """One way of keeping a dataset: bytes, and what can still be done with it (None where it was not measured)."""

    dataset: str
    form: str
    bytes: int
    psnr: float | None = None
    accuracy: float | None = None


def storage_chart(table: Sequence[StorageRow], path: str | Path) -> None:
    """Draw bytes, PSNR and accuracy of every form of every dataset as bars, one row of panels a dataset, into a PNG.

    ``accuracy`` is a fraction, ``psnr`` in dB. Sizes are compared with the first form of each dataset. Panels for
    which no row has a value are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(row.dataset for row in table))
    panels = ["bytes", *(name for name in ("psnr", "accuracy") if any(getattr(row, name) is not None for row in table))]
    forms = max(sum(row.dataset == name for row in table) for name in datasets)
    figure = Figure(
        figsize=(3.6 * len(panels) + 1.2, len(datasets) * (0.42 * forms + 0.75) + 0.3), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(datasets), len(panels), squeeze=False, sharey="row")
    for dataset, line in zip(datasets, axes, strict=True):
        rows = [row for row in table if row.dataset == dataset]
        for panel, axis in zip(panels, line, strict=True):
            _draw_panel(axis, rows, panel)
        line[0].set_ylabel(dataset, fontsize=10, fontweight="bold", color=INK)
    for panel, axis in zip(panels, axes[0], strict=True):
        title = {"bytes": "size", "psnr": "PSNR (dB)", "accuracy": "accuracy"}[panel]
        axis.set_title(title, fontsize=10, color=INK, loc="left")
    figure.savefig(path, dpi=150)


def _draw_panel(axis: Axes, rows: Sequence[StorageRow], panel: str) -> None:
    """Horizontal bars of one quantity, one a form, each with its value written beside it."""
    values = [getattr(row, panel) for row in rows]
    if all(value is None for value in values):
        axis.set_axis_off()
        return
    colours = [COLOURS.get(row.form.lower(), _OTHER_COLOUR) for row in rows]
    axis.barh(range(len(rows)), [value or 0 for value in values], color=colours, height=0.62)
    largest = max((value for value in values if value is not None), default=1) or 1
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        label = "–" if value is None else _label(row, panel, rows)
        axis.text((value or 0) + 0.02 * largest, place, label, va="center", fontsize=9, color=INK)
    axis.set_xlim(0, largest * 1.45)
    axis.set_yticks(range(len(rows)), [row.form for row in rows], fontsize=9)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xticks([])
    axis.tick_params(length=0, labelcolor=MUTED)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.spines["left"].set_color("#ced4da")


def _label(row: StorageRow, panel: str, rows: Sequence[StorageRow]) -> str:
    if panel == "psnr":
        return f"{row.psnr:.1f}"
    if panel == "accuracy":
        return f"{row.accuracy:.1%}"
    reference = rows[0].bytes
    smaller = f"   {reference / row.bytes:.1f}× smaller" if 0 < row.bytes < reference else ""
    return f"{readable_bytes(row.bytes)}{smaller}"


def plain_log_ticks(axis: Axis) -> None:
    """Numbers as people write them on an axis with a log scale: 1, 2, 5, 10 …, or even steps within half a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
