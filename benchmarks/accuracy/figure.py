"""The picture of README and docs, from the table that the benchmark wrote:

    python benchmarks/accuracy/figure.py out/storage_accuracy/storage_accuracy.csv docs/storage-accuracy.svg

Colours are readable on white and on black; the background is left out.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

GREY = "#7d838c"
COLOURS = {
    "tokens": "#e8590c",
    "tokens + MTM": "#f59f00",
    "WebP": "#1c7ed6",
    "shared-table JPEG": "#2b9e8f",
    "JPEG": "#9775c9",
    "fewer images": GREY,
}
"""Arms that are drawn, those of tokens first."""


def draw(rows: list[dict[str, str]], file: Path) -> None:
    """Top-1 over the share of the bytes, a line an arm; bars are 95 % intervals, where there are three seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    settings = {"svg.fonttype": "none", "svg.hashsalt": "tokenshard", "font.size": 11, "font.family": "sans-serif"}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY)
    with matplotlib.rc_context(settings):
        figure, axis = pyplot.subplots(figsize=(7.5, 4), layout="constrained")
        whole = next(row for row in rows if row["arm"] == "original")
        axis.axhline(float(whole["top1"]), color=GREY, ls="--", lw=1)
        label = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axis.annotate("original files, all bytes", (0.03, float(whole["top1"])), (0, 4), **label)
        for arm, colour in COLOURS.items():
            mine = sorted((row for row in rows if row["arm"] == arm), key=lambda row: float(row["share"]))
            shares, means = [[float(row[name]) for row in mine] for name in ("share", "top1")]
            bars = [float(row["ci95"]) if int(row["seeds"]) >= 3 else 0.0 for row in mine]
            ours = arm.startswith("tokens")
            look = {"lw": 2.4 if ours else 1.4, "marker": "*" if ours else "o", "ms": 11 if ours else 5, "capsize": 3}
            axis.errorbar(shares, means, bars, color=colour, label=arm, elinewidth=1, **look)
        axis.set_xscale("log")
        axis.set_xticks([0.01, 0.02, 0.05, 0.1], ["1 %", "2 %", "5 %", "10 %"])
        axis.minorticks_off()
        axis.set_xlabel("stored bytes, share of the original files")
        axis.set_ylabel("test top-1, %")
        axis.grid(alpha=0.25, color=GREY)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=10, ncols=2, loc="lower right")
        figure.savefig(file, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    with open(sys.argv[1], newline="") as table:
        draw(list(csv.DictReader(table)), Path(sys.argv[2]))
