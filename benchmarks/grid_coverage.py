"""Coverage of uncertainty widths in regions that they were not calibrated on, beside what the paper does.

    python benchmarks/grid_coverage.py --data FOLDER [--out FOLDER]

Tokens are codes of normalised 8 × 8 blocks (mean, gain, one of 256 shapes by k-means) fitted on the Gulf of Guinea,
the S Atlantic and Middle America west; the error is what decoding them leaves, in metres. Widths are calibrated on the
Arabian Sea and Middle America centre and tested on the South China Sea and Middle America east, at 90 %; classes are
fifths of token gain of the calibration. Intervals draw tiles of 64 × 64 cells again. The exit code is 1 if a promise
is missed. FOLDER gets `grid_coverage.csv`: nominal and found coverage at six levels, with the interval.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gridding.loading import DATASETS, load
from gridding.promises import kept
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans

from tokenshard.grids.conformal import Calibration, Coverage, Tile, calibrate, coverage, coverage_by_class, paper_widths
from tokenshard.grids.widths import BLOCK, cell_widths, encode_widths, exact_widths

SIDE = 64
CODES = 256
GAIN_FLOOR = 0.5
ALPHA = 0.1
LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95, 0.99)
TESTS = ("South China Sea", "Middle America east")


@dataclass(frozen=True)
class Region:
    """Tiles of a region; ``errors``: ``[tiles, 64, 64]``, ``gains`` alike."""

    errors: NDArray[np.float64]
    gains: NDArray[np.float64]

    @property
    def tiles(self) -> list[Tile]:
        return [Tile(e.reshape(-1), g.reshape(-1)) for e, g in zip(self.errors, self.gains, strict=True)]


def regions(data: Path) -> dict[str, NDArray[np.float64]]:
    """Heights by region, cut to whole tiles."""
    names = ("Gulf of Guinea", "S Atlantic", "Arabian Sea", "South China Sea", "ETOPO1")
    grids = {name: load(data, DATASETS[name])[0].astype(np.float64) for name in names}
    whole = grids.pop("ETOPO1")
    for part, name in enumerate(("west", "centre", "east")):
        grids[f"Middle America {name}"] = whole[:, 336 * part : 336 * (part + 1)]
    return {name: z[: z.shape[0] // SIDE * SIDE, : z.shape[1] // SIDE * SIDE] for name, z in grids.items()}


def cut(z: NDArray[Any], side: int) -> NDArray[Any]:
    """``[h, w]`` as ``[n, side, side]``."""
    return z.reshape(z.shape[0] // side, side, -1, side).swapaxes(1, 2).reshape(-1, side, side)


def normalised(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, gain (in quarter octaves) and shape of all blocks."""
    rows = cut(z, BLOCK).reshape(-1, BLOCK * BLOCK)
    mean = rows.mean(1, keepdims=True)
    gain = 2 ** (np.round(4 * np.log2(np.maximum(rows.std(1, keepdims=True), GAIN_FLOOR))) / 4)
    return mean, gain, (rows - mean) / gain


def decoded(z: NDArray[np.float64], shapes: MiniBatchKMeans) -> Region:
    """What tokens leave of a region."""
    errors, gains = [], []
    for tile in cut(z, SIDE):
        _, gain, shape = normalised(tile)
        left = (shape - shapes.cluster_centers_[shapes.predict(shape)]) * gain
        errors.append(joined(left))
        gains.append(joined(np.broadcast_to(gain, left.shape)))
    return Region(np.stack(errors), np.stack(gains))


def joined(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The blocks of one tile put together."""
    side = SIDE // BLOCK
    return rows.reshape(side, side, BLOCK, BLOCK).swapaxes(1, 2).reshape(SIDE, SIDE)


def paper_coverage(calibration: Region, test: Region, classes: Calibration) -> tuple[Coverage, list[Coverage]]:
    """Of z times the standard deviation, by position."""
    inside = np.abs(test.errors) <= paper_widths(calibration.errors, ALPHA)
    group = classes.classes(test.gains)
    by_class = [coverage([ok[of == i] for ok, of in zip(inside, group, strict=True)]) for i in range(5)]
    return coverage([ok.reshape(-1) for ok in inside]), by_class


def held(whole: Coverage, by_class: list[Coverage]) -> tuple[bool, bool]:
    """Whether coverage is that promised on the whole, and in every class that is large enough to tell."""
    counted = [part.share for part in by_class if part.num_cells >= 20_000 and part.num_tiles >= 10]
    return abs(whole.share - (1 - ALPHA)) <= 0.03, all(0.80 <= share <= 0.98 for share in counted)


def print_coverage(method: str, whole: Coverage, by_class: list[Coverage]) -> None:
    shares = " ".join(f"{part.share:.2f}" for part in by_class)
    print(f"{method:34}{whole.share:.3f} [{whole.low:.3f}, {whole.high:.3f}]  smooth to rough: {shares}")


def check_exact(region: Region) -> list[tuple[str, bool]]:
    """Exact widths: least coverage of a block, and bits a cell."""
    found = []
    for wanted in (0.9, 1.0):
        size, least = 0, 1.0
        for error in region.errors:
            codes = exact_widths(error, np.ones(error.shape, np.bool_), wanted)
            inside = np.abs(error) <= cell_widths(codes, error.shape)
            least = min(least, float(cut(inside, BLOCK).mean((1, 2)).min()))
        rows = [np.hstack(region.errors[i : i + 4]) for i in range(0, len(region.errors) // 4 * 4, 4)]
        grid = np.vstack(rows)
        size = len(encode_widths(exact_widths(grid, np.ones(grid.shape, np.bool_), wanted)))
        bits = 8 * size / grid.size
        print(f"exact, {wanted:.0%} of each block{'':10}least {least:.4f}, {bits:.4f} bits a cell")
        found += [
            (f"exact {wanted:.0%}: every block", least >= wanted),
            (f"exact {wanted:.0%}: bits <= 0.07", bits <= 0.07),
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the grids")
    parser.add_argument("--out", type=Path, help="folder for grid_coverage.csv")
    options = parser.parse_args()
    grids = regions(options.data)
    train = np.concatenate([normalised(grids[n])[2] for n in ("Gulf of Guinea", "S Atlantic", "Middle America west")])
    shapes = MiniBatchKMeans(CODES, random_state=0, batch_size=4096, n_init=1, max_iter=30).fit(train)
    sea, land = (decoded(grids[name], shapes) for name in ("Arabian Sea", "Middle America centre"))
    known = Region(np.concatenate([sea.errors, land.errors]), np.concatenate([sea.gains, land.gains]))
    fifths = calibrate(known.tiles, ALPHA, 5, normalised=False)
    methods = {
        "split": calibrate(known.tiles, ALPHA, 1, normalised=False),
        "Mondrian": fifths,
        "normalised": calibrate(known.tiles, ALPHA, 1),
        "Mondrian, normalised": calibrate(known.tiles, ALPHA),
    }
    promises: list[tuple[str, bool]] = []
    reliability: list[dict[str, Any]] = []
    for name in TESTS:
        test = decoded(grids[name], shapes)
        print(f"\n{name}: {len(test.tiles)} tiles, calibrated on {len(known.tiles)}")
        for method, calibration in methods.items():
            whole = coverage([np.abs(tile.error) <= calibration.widths(tile.roughness) for tile in test.tiles])
            by_class = coverage_by_class(test.tiles, calibration, fifths)
            print_coverage(method, whole, by_class)
            if method == "Mondrian, normalised":
                promises += [
                    (f"{name}: {what}", ok)
                    for what, ok in zip(("whole", "classes"), held(whole, by_class), strict=True)
                ]
            if method == "split":
                promises.append((f"{name}: split conformal fails in a class", not held(whole, by_class)[1]))
        whole, by_class = paper_coverage(known, test, fifths)
        print_coverage("paper: z times deviation", whole, by_class)
        promises.append((f"{name}: the paper's way fails", not all(held(whole, by_class))))
        promises += [(f"{name}: {what}", ok) for what, ok in check_exact(test)]
        gaps = []
        for level in LEVELS:
            own = calibrate(known.tiles, 1 - level)
            found = coverage([np.abs(tile.error) <= own.widths(tile.roughness) for tile in test.tiles])
            reliability.append(
                {"region": name, "nominal": level, "found": found.share, "low": found.low, "high": found.high}
            )
            gaps.append(abs(found.share - level))
        print(f"reliability at {', '.join(f'{level:.0%}' for level in LEVELS)}: mean gap {np.mean(gaps):.4f}")
        promises.append((f"{name}: mean gap <= 0.03", float(np.mean(gaps)) <= 0.03))
    outcome = kept(promises)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / "grid_coverage.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(reliability[0]))
            writer.writeheader()
            writer.writerows(reliability)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
