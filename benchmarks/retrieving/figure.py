"""Rate and quality of all methods in one picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from retrieving.measure import Row

_MARKERS = "osD^v<>Ph*X"
"""Not as many as colours, so that no two methods have both in common."""


def plot(rows: Sequence[Row], label: str, file: Path) -> None:
    """Methods are lines from few to many bytes; what prunes or pools first is hollow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(15, 6.5), constrained_layout=True)
    families: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.bytes_a_vector):
        families.setdefault(_family(row.codec), []).append(row)
    for number, (family, own) in enumerate(sorted(families.items())):
        style = {
            "color": "black" if family == "ofec" else f"C{number % 10}",
            "marker": _MARKERS[number % len(_MARKERS)],
            "markerfacecolor": "none" if "|" in family else None,
            "linestyle": ":" if "|" in family else "-",
            "linewidth": 2.5 if family == "ofec" else 1,
            "label": family,
            "zorder": 3 if family == "ofec" else 2,
        }
        for panel, ys in zip(panels, ([r.overlap for r in own], [100 * r.kept for r in own]), strict=True):
            panel.plot([r.bytes_a_vector for r in own], ys, **style)
    panels[1].axhline(100, color="grey", linewidth=0.8)
    for panel, name in zip(panels, ("overlap of the ten best with exact", f"{label} kept, %"), strict=True):
        panel.set(xscale="log", xlabel="bytes a vector of the whole pages, codebook apart", ylabel=name)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3, which="both")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _family(codec: str) -> str:
    """Methods that differ in a number alone are one line: `pq16` and `pq32`, also behind a reduction."""
    return re.sub(r"((?<=[a-z])(?<!fp)[0-9]+|([:,]([0-9.]+|auto))+)(?=$|[|/])", "", codec)
