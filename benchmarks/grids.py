"""Bits of grids at a guaranteed largest error, beside SZ3, LERC, ZFP and quantised JPEG XL in the same process.

    python benchmarks/grids.py --data FOLDER [--out FOLDER] [--only NAME …] [--quick]

FOLDER holds the files that `gridding/loading.py` names. Our bytes are whole streams (framing, masks, tables,
checksums), the grid as tiles of 256 × 256 cells and as one tile, each decoded again and checked against the bound.
Peers code the whole grid at once. Bits are a valid cell; speeds are million cells a second of CPU time of our encoder,
which tries both scans, and decoder, and of the peers' encoding and decoding together. Bounds that the package promises
are checked at the end; the exit code is 1 if one is missed. FOLDER gets `grids.csv` and `grids.png` (rate against the
largest error).
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gridding.loading import DATASETS, load
from numpy.typing import NDArray

from tokenshard.grids.bounded import Bound, decode_tile, encode_tile
from tokenshard.grids.bounded.quantise import lattice
from tokenshard.report.grid_peers import PEERS, shuffled_zstd

SIDE = 256
CASES: dict[str, tuple[str, ...]] = {
    "ETOPO1": ("lossless", "abs:1", "abs:2", "abs:5", "abs:10", "abs:25", "abs:50"),
    "South China Sea": ("abs:0.05", "abs:0.5", "abs:2", "abs:5", "abs:10", "abs:25", "abs:50", "tvu:1a,0.1"),
    "Gulf of Guinea": ("abs:5", "abs:25", "tvu:1a,0.1"),
    "S Atlantic": ("lossless", "abs:5", "abs:25", "tvu:1a,0.1"),
    "global 10'": ("lossless", "abs:5", "abs:25"),
    "geoid": ("lossless", "abs:1"),
    "multibeam": ("lossless", "abs:0.01", "abs:0.02", "abs:0.05", "abs:0.1", "abs:0.2", "tvu:1a,0.1"),
    "CUDEM": ("lossless", "abs:0.05", "abs:0.25", "tvu:1a,0.1"),
    "Wadden": ("lossless", "abs:0.05"),
}
"""Bounds by grid; those of the geoid are in its stored unit, 0.1 m."""
CURVES = ("ETOPO1", "South China Sea", "multibeam")


@dataclass(frozen=True)
class Row:
    """One codec on one grid at one bound. ``encode``, ``decode``: million cells a second of CPU time."""

    grid: str
    bound: str
    codec: str
    bits: float
    max_error: float
    encode: float
    decode: float | None = None
    note: str = ""


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the CPU seconds that took."""
    before = time.process_time()
    return work(), time.process_time() - before


def ours(name: str, text: str, z: NDArray[Any], valid: NDArray[np.bool_], side: int, codec: str) -> Row:
    """Tiles of a grid, encoded, decoded and held against the bound."""
    bound, nodata = Bound.parse(text), DATASETS[name].nodata
    size, used, spent, worst, kinds = 0, [0.0, 0.0], 0.0, 0.0, {"causal": 0, "hierarchical": 0}
    for y in range(0, z.shape[0], side):
        for x in range(0, z.shape[1], side):
            part, there = z[y : y + side, x : x + side], valid[y : y + side, x : x + side]
            tile, spent = timed(lambda part=part: encode_tile(part, bound, nodata=nodata))
            used[0] += spent
            (decoded, mask), spent = timed(lambda tile=tile: decode_tile(tile.stream))
            used[1] += spent
            assert (mask == there).all(), f"{name}: the mask is not that of the source"
            size += len(tile.stream)
            if not there.any():
                continue
            kinds[tile.predictor] += 1
            if bound.kind == "lossless":
                assert decoded[there].tobytes() == part[there].tobytes(), f"{name}: not the source's bits"
                continue
            error = np.abs(decoded[there].astype(np.float64) - part[there].astype(np.float64))
            worst = max(worst, float((error / (bound.allowed(part[there]) / bound.value)).max()))
    cells = float(valid.sum()) / 1e6
    note = f"{kinds['causal']} causal, {kinds['hierarchical']} hierarchical"
    return Row(name, text, codec, 8 * size / valid.sum(), worst, cells / used[0], cells / used[1], note)


def rivals(name: str, text: str, z: NDArray[Any], valid: NDArray[np.bool_]) -> Iterator[Row]:
    """What the peers make of it. Those without a lossless mode for integers get a bound of one half."""
    bound = Bound.parse(text)
    cells = float(valid.sum())
    if bound.kind == "lossless":
        yield Row(name, text, "zstd 19, bytes shuffled", 8 * shuffled_zstd(z) / cells, 0.0, 0.0)
    if bound.kind == "tvu":
        return
    most = bound.value or 0.5
    floats = bound.kind == "lossless" and z.dtype.kind == "f"
    if floats:
        if not lattice(z[valid]):
            return
        most = 0.0  # of the whole numbers that the floats are on
    for codec, peer in {"JPEG XL": PEERS["JPEG XL"]}.items() if floats else PEERS.items():
        made, spent = timed(lambda peer=peer: peer(z, valid, most))
        if made is not None:
            error = np.abs(made[1].astype(np.float64) - z.astype(np.float64))[valid].max()
            yield Row(name, text, codec, 8 * made[0] / cells, float(error), cells / 1e6 / spent)


@dataclass(frozen=True)
class Check:
    """A promise: the value must be at most ``most``."""

    what: str
    value: float
    most: float


def checks(rows: list[Row]) -> Iterator[Check]:
    """All promises whose rows were measured."""
    bits = {(row.grid, row.bound, row.codec): row.bits for row in rows}
    worst = {(row.grid, row.bound): row.max_error for row in rows if row.codec == "ours, tiles"}

    def of(grid: str, bound: str, most: float) -> Iterator[Check]:
        if (grid, bound, "ours, tiles") in bits:
            yield Check(f"{grid}, {bound}: bits a cell", bits[grid, bound, "ours, tiles"], most)

    def against(grid: str, bound: str, codec: str, most: float) -> Iterator[Check]:
        if (grid, bound, codec) in bits:
            ratio = bits[grid, bound, "ours, tiles"] / bits[grid, bound, codec]
            yield Check(f"{grid}, {bound}: bits, of {codec}", ratio, most)

    for grid, most in {"ETOPO1": 6.7, "global 10'": 6.1, "S Atlantic": 6.2, "CUDEM": 5.0}.items():
        yield from of(grid, "lossless", most)
        yield from against(grid, "lossless", "JPEG XL", 1.05)
        yield from against(grid, "lossless", "zstd 19, bytes shuffled", 0.80)
    for grid in ("ETOPO1", "South China Sea", "Gulf of Guinea", "S Atlantic", "global 10'"):
        yield from against(grid, "abs:5", "SZ3", 0.92)
        yield from against(grid, "abs:5", "LERC+zstd", 0.60)
        yield from against(grid, "abs:5", "JPEG XL", 1.03)
        yield from against(grid, "abs:25", "SZ3", 0.95)
        yield from against(grid, "abs:25", "JPEG XL", 1.03)
    yield from of("multibeam", "abs:0.05", 0.6)
    yield from of("Wadden", "abs:0.05", 0.75)
    yield from of("South China Sea", "tvu:1a,0.1", 3.6)
    uniform, scaled = (("South China Sea", bound, "ours, tiles") for bound in ("abs:0.05", "tvu:1a,0.1"))
    if uniform in bits and scaled in bits:
        yield Check("South China Sea: bits of tvu:1a,0.1, of abs:0.05", bits[scaled] / bits[uniform], 0.45)
    for (grid, bound), error in worst.items():
        if bound.startswith("tvu"):
            yield Check(f"{grid}, {bound}: largest error / TVU", error, 0.1)


def plot(rows: list[Row], path: Path) -> None:
    """Bits a cell against the bound, one panel a grid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grids = [grid for grid in CURVES if any(row.grid == grid for row in rows)]
    figure, panels = pyplot.subplots(1, max(len(grids), 1), figsize=(5.2 * max(len(grids), 1), 4.2), squeeze=False)
    for panel, grid in zip(panels[0], grids, strict=False):
        for codec in ("ours, tiles", *PEERS):
            points = sorted(
                (float(row.bound.removeprefix("abs:")), row.bits)
                for row in rows
                if row.grid == grid and row.codec == codec and row.bound.startswith("abs:")
            )
            if points:
                own = codec.startswith("ours")
                panel.plot(
                    *zip(*points, strict=True), marker="o", markersize=4, linewidth=2.4 if own else 1.2, label=codec
                )
        panel.set(title=grid, xscale="log", yscale="log", xlabel="largest error allowed, m", ylabel="bits a valid cell")
        panel.grid(True, which="both", alpha=0.25)
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def print_rows(name: str, text: str, rows: list[Row]) -> None:
    """One line a codec; the last column is our tiles' bits as a share of its."""
    own = next(row.bits for row in rows if row.codec == "ours, tiles")
    print(f"\n{name}, {text}")
    print(f"{'':26}{'bits/cell':>10}{'ours / it':>10}{'max error':>12}{'Mcell/s':>9}{'decode':>8}")
    for row in rows:
        speeds = f"{row.encode:9.2f}" + (f"{row.decode:8.2f}" if row.decode else "")
        print(
            f"{row.codec:26}{row.bits:10.3f}{own / row.bits:10.3f}{row.max_error:12.6g}{speeds}  {row.note}", flush=True
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the grids")
    parser.add_argument("--out", type=Path, help="folder for grids.csv and grids.png")
    parser.add_argument("--only", nargs="+", choices=CASES, help="these grids alone")
    parser.add_argument("--quick", action="store_true", help="a corner of 200 x 200 cells of each: shows that it runs")
    options = parser.parse_args()
    encode_tile(np.arange(400, dtype=np.int16).reshape(20, 20) ** 2 % 97, "lossless")  # compiled before time counts
    rows: list[Row] = []
    for name, bounds in CASES.items():
        if options.only and name not in options.only:
            continue
        z, valid = load(options.data, DATASETS[name])
        if options.quick:
            middle = z.shape[0] // 2
            z, valid = z[middle : middle + 200, :200].copy(), valid[middle : middle + 200, :200]
            if not valid.any():
                continue
        for text in bounds:
            found = [
                ours(name, text, z, valid, SIDE, "ours, tiles"),
                ours(name, text, z, valid, 1 << 20, "ours, one tile"),
            ]
            found += rivals(name, text, z, valid)
            print_rows(name, text, found)
            rows += found
    missed = 0
    print()
    for check in checks(rows):
        kept = check.value <= check.most
        missed += not kept
        print(f"{'ok    ' if kept else 'MISSED'} {check.what}: {check.value:.4g} (at most {check.most:g})")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / "grids.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        plot(rows, options.out / "grids.png")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
