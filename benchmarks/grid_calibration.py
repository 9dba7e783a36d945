"""Calibrated widths through the command line: one region's truth calibrates the tokens of another.

    python benchmarks/grid_calibration.py --data FOLDER [--scratch FOLDER]

A tokenizer is trained on the Gulf of Guinea, the S Atlantic and Middle America west; the Arabian Sea and Middle America
centre are calibrated on, the South China Sea and Middle America east tested, each by its own command: `convert grids`,
`grid calibrate`, `grid coverage`, `grid plot reliability`. The exit code is 1 if a promise is missed: at 90 % all cells
within .03 and each large class of roughness from .80 to .98, where one quantile for all and z times a deviation fail;
at six levels a mean gap of at most .03.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray
from gridding.loading import DATASETS, load
from gridding.promises import kept
from numpy.typing import NDArray

TRAINED = ("guinea", "atlantic", "america-west")
CALIBRATED = ("arabia", "america-centre")
TESTED = ("china", "america-east")
PARTS = 3


def regions(data: Path) -> dict[str, NDArray[np.float32]]:
    """Heights in metres by region."""
    names = {"guinea": "Gulf of Guinea", "atlantic": "S Atlantic", "arabia": "Arabian Sea", "china": "South China Sea"}
    grids = {key: load(data, DATASETS[name])[0].astype(np.float32) for key, name in names.items()}
    america = load(data, DATASETS["ETOPO1"])[0].astype(np.float32)
    side = america.shape[1] // PARTS
    for part, name in enumerate(("west", "centre", "east")):
        grids[f"america-{name}"] = america[:, side * part : side * (part + 1)]
    return grids


def write(path: Path, z: NDArray[np.float32]) -> None:
    """Cells of one minute, somewhere."""
    lat, lon = (np.arange(size) / 60 for size in z.shape)
    axes = {"lat": ("lat", lat, {"units": "degrees_north"}), "lon": ("lon", lon, {"units": "degrees_east"})}
    xarray.Dataset({"elevation": (("lat", "lon"), z, {"units": "m"})}, axes).to_netcdf(path, engine="h5netcdf")


def tokenshard(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tokenshard.cli.main", *words, "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
    return json.loads(done.stdout)


def converted(grids: dict[str, NDArray[np.float32]], names: tuple[str, ...], out: Path, *words: str) -> Path:
    folder = out.with_suffix(".src")
    folder.mkdir()
    for name in names:
        write(folder / f"{name}.nc", grids[name])
    tokenshard("convert", "grids", str(folder), str(out), "--engine", "local", "--workers", "0", "--quiet", *words)
    return out


def holds(found: dict[str, Any]) -> bool:
    """Whether coverage is that promised on the whole, and in every class that is large enough to tell."""
    large = [c["share"] for c in found["by_class"] if c["num_cells"] >= 20_000 and c["num_tiles"] >= 10]
    return abs(found["whole"]["share"] - found["nominal"]) <= 0.03 and all(0.80 <= share <= 0.98 for share in large)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the grids")
    parser.add_argument("--scratch", type=Path, help="folder for datasets and charts, kept")
    options = parser.parse_args()
    promises: list[tuple[str, bool]] = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        grids = regions(options.data)
        trained = converted(grids, TRAINED, scratch / "trained", "--tokenizer", "grid:8x8,k=256", "--bound", "none")
        (tokenizer,) = (trained / "tokenizer").iterdir()
        out = converted(grids, (*CALIBRATED, *TESTED), scratch / "tokens", "--tokenizer", str(tokenizer))
        on = ",".join(f"{name}.nc" for name in CALIBRATED)
        for by in ("roughness,depth", "roughness"):
            made = tokenshard("grid", "calibrate", str(out), "--regions", on, "--by", by)
            print(f"\nby {by}: {made['num_tiles']} tiles, {made['num_scores']:,} cells")
            for found in tokenshard("grid", "coverage", str(out), "--calibration", made["calibration"]):
                whole, classes = found["whole"], " ".join(f"{part['share']:.2f}" for part in found["by_class"])
                print(
                    f"{found['region']:18}{found['method']:15}{whole['share']:.3f} [{whole['low']:.3f}, "
                    f"{whole['high']:.3f}]  {classes}  width {found['mean_width']:.1f} m"
                )
                if found["method"] != "exact":
                    wanted = found["method"] == "conformal"
                    what = f"{found['region']}, by {by}: {found['method']} {'holds' if wanted else 'does not hold'}"
                    promises.append((what, holds(found) == wanted))
        chart = scratch / "reliability.png"
        tokenshard("grid", "plot", "reliability", str(out), "--calibration", made["calibration"], "--to", str(chart))
        with chart.with_suffix(".csv").open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["class"] == "all"]
        for name in TESTED:
            gaps = [abs(float(x["found"]) - float(x["nominal"])) for x in lines if x["region"] == f"{name}.nc"]
            print(f"{name}: mean gap at {len(gaps)} levels {np.mean(gaps):.4f}")
            promises.append((f"{name}: six levels, mean gap <= 0.03", len(gaps) == 6 and float(np.mean(gaps)) <= 0.03))
    return kept(promises)


if __name__ == "__main__":
    sys.exit(main())
