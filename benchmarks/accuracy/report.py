"""The curve: means with their intervals, differences by seed, and what may be said of them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from accuracy.arms import ADAPTED, ARMS, DECODED, MASKED, ORIGINAL, PIXELS, SHUFFLED_LABELS, SHUFFLED_POSITIONS, TOKENS
from accuracy.intervals import Interval, interval

Row = dict[str, Any]
TOKEN_ARMS = (TOKENS, MASKED, ADAPTED)
RETAINED = 0.9
RANGE = (0.01, 0.1)
"""Shares of the bytes between which the area between the curves is taken."""


def top1(rows: Sequence[Row], arm: str, budget: float) -> dict[int, float]:
    """By seed."""
    return {row["seed"]: row["top1"] for row in rows if row["arm"] == arm and row["budget"] == budget}


def points(rows: Sequence[Row]) -> list[Row]:
    """A row an arm and budget."""
    found = []
    for arm in ARMS:
        for budget in sorted({row["budget"] for row in rows if row["arm"] == arm}, reverse=True):
            mine = [row for row in rows if row["arm"] == arm and row["budget"] == budget]
            mean = interval([row["top1"] for row in mine])
            found.append(
                {
                    "arm": arm,
                    "budget": budget,
                    "setting": mine[0]["setting"],
                    "images": mine[0]["images"],
                    "bytes": mine[0]["bytes"],
                    "share": mine[0]["share"],
                    "seeds": mean.count,
                    "top1": mean.mean,
                    "ci95": mean.half,
                    "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in mine])),
                    "images_per_second": float(np.mean([row["images_per_second"] for row in mine])),
                }
            )
    return found


def difference(rows: Sequence[Row], first: tuple[str, float], second: tuple[str, float]) -> Interval | None:
    """Of the seeds that two arms at their budgets both have."""
    one, other = top1(rows, *first), top1(rows, *second)
    seeds = sorted(one.keys() & other.keys())
    return interval([one[seed] - other[seed] for seed in seeds]) if seeds else None


def envelope(found: Sequence[Row], arms: Sequence[str]) -> list[tuple[float, float]]:
    """(share, top-1) of the points that none of at most their share is better than, the smallest first."""
    best: list[tuple[float, float]] = []
    for share, value in sorted((row["share"], row["top1"]) for row in found if row["arm"] in arms):
        if not best or value > best[-1][1]:
            best.append((share, value))
    return best


def at(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Top-1 that an envelope has at most at a share; NaN below its first point."""
    return max((value for place, value in curve if place <= share), default=math.nan)


def area(curve: Sequence[tuple[float, float]]) -> float:
    """Mean top-1 over the logarithm of the share in `RANGE`, as steps."""
    places = np.linspace(*np.log10(RANGE), 201)
    return float(np.mean([at(curve, 10**place * (1 + 1e-9)) for place in places]))


def needed(curve: Sequence[tuple[float, float]], value: float) -> float | None:
    """The least share with at least this top-1."""
    return min((share for share, found in curve if found >= value), default=None)


def best_pixels(rows: Sequence[Row], budget: float) -> str | None:
    """The arm of pixels that is best on test images at a budget; tokens have to be better than this one."""
    mine = [row for row in points(rows) if row["arm"] in PIXELS and row["budget"] == budget]
    return max(mine, key=lambda row: row["top1"])["arm"] if mine else None


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What is to be said."""
    found = points(rows)
    by_budget = []
    for budget in sorted({row["budget"] for row in found if row["arm"] in PIXELS}, reverse=True):
        pixel_arm = best_pixels(rows, budget)
        assert pixel_arm is not None
        row: Row = {"budget": budget, "pixel_arm": pixel_arm}
        for arm in (*TOKEN_ARMS, DECODED):
            gap = difference(rows, (arm, budget), (pixel_arm, budget))
            if gap is not None:
                row[arm] = {
                    "above_pixels": gap.mean,
                    "ci95": gap.half,
                    "seeds": gap.count,
                    "win": gap.mean - gap.half > 0,
                }
        gains = {arm: difference(rows, (arm, budget), (TOKENS, budget)) for arm in (MASKED, ADAPTED)}
        row["gains"] = {arm: asdict(gain) for arm, gain in gains.items() if gain is not None}
        by_budget.append(row)
    whole = interval(list(top1(rows, ORIGINAL, 1.0).values()))
    curves = {"tokens": envelope(found, TOKEN_ARMS), "pixels": envelope(found, (ORIGINAL, *PIXELS))}
    return {
        "original_top1": {"mean": whole.mean, "ci95": whole.half, "seeds": whole.count},
        "budgets": by_budget,
        "sentences": [sentence(found, row, whole.mean) for row in by_budget],
        "share_for_90_percent_of_original": {
            name: needed(curve, RETAINED * whole.mean) for name, curve in curves.items()
        },
        "mean_top1_from_1_to_10_percent": {name: area(curve) for name, curve in curves.items()},
        "shuffled_labels": list(_values(rows, SHUFFLED_LABELS)),
        "shuffled_positions": list(_values(rows, SHUFFLED_POSITIONS)),
        "points": found,
    }


def _values(rows: Sequence[Row], arm: str) -> list[float]:
    return [row["top1"] for row in rows if row["arm"] == arm]


def sentence(found: Sequence[Row], row: Row, whole: float) -> str:
    """What may be said of a budget, the best pixels of the same budget beside it."""
    budget = row["budget"]
    mine = [point for point in found if point["arm"] in TOKEN_ARMS and point["budget"] == budget]
    other = [point for point in found if point["arm"] == row["pixel_arm"] and point["budget"] == budget]
    if not mine or not other:
        return f"{budget:.0%}: not measured"
    best = max(mine, key=lambda point: point["top1"])
    kept, pixels = best["top1"] / whole, other[0]["top1"] / whole
    return (
        f"{best['arm']} retain {kept:.1%} of the accuracy of the originals at {best['share']:.2%} of the bytes; "
        f"{other[0]['setting']} {pixels:.1%} at {other[0]['share']:.2%}"
    )


def write(rows: Sequence[Row], facts: dict[str, Any], out: Path) -> None:
    """`storage_accuracy.csv` (a row an arm and budget), `.json` (everything) and `.png`."""
    found = summary(rows)
    with (out / "storage_accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found["points"][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found["points"])
    (out / "storage_accuracy.json").write_text(json.dumps({**facts, **found, "runs": list(rows)}, indent=1) + "\n")
    draw(found["points"], out / "storage_accuracy.png")
    print(*found["sentences"], sep="\n")


def draw(found: Sequence[Row], file: Path) -> None:
    """Top-1 over the share of the bytes, a line an arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for arm in ARMS:
        mine = sorted((row["share"], row["top1"], row["ci95"]) for row in found if row["arm"] == arm)
        if not mine:
            continue
        shares, means, halves = zip(*mine, strict=True)
        errors = [0.0 if math.isnan(half) else half for half in halves]
        ours = arm in (*TOKEN_ARMS, DECODED)
        axis.errorbar(shares, means, errors, marker="*" if ours else "o", ms=11 if ours else 5, capsize=3, label=arm)
    axis.set_xscale("log")
    axis.set_xlabel("counted bytes, share of the original files")
    axis.set_ylabel("test top-1 (%)")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=150)
