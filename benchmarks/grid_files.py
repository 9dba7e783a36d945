"""Grid files through a dataset and back.

    python benchmarks/grid_files.py ../shared/data/bathymetry [--out results.json]

Each file is converted with `--bound lossless`, exported whole to GeoTIFF and NetCDF, and compared with what h5py, SciPy
and rasterio read of both, bit by bit. Then it is converted within several largest errors and exported again: the error
of every cell is taken from the exported files, in their own type; within 5 it is also looked up at 1,000 random cells.
The exit code is 1 where a bit differs or a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from numpy.typing import NDArray

from tokenshard.engine.convert import run_conversion
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import GridDecoder, point
from tokenshard.grids.export import export_grid
from tokenshard.shards.dataset import open_dataset
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.spec.grids import GridEntry, LayerEntry
from tokenshard.spec.job import ConvertGrids, build_job

SUFFIXES = (".nc", ".cdf", ".tif", ".tiff", ".bag")
POINTS = 1000
ERROR = 5.0
ERRORS = (0.05, 0.1, 0.5, 1.0, 5.0, 25.0)
"""Metres, or the unit of the grid."""


def stored_values(path: Path, entry: GridEntry) -> list[NDArray[Any]]:
    """The layers of a file as its own library reads them."""
    names = [layer.name for layer in entry.layers]
    if entry.form == "raster":
        with rasterio.open(path) as file:
            return [file.read(number + 1) for number in range(len(names))]
    if entry.form == "netcdf3":
        from scipy.io import netcdf_file

        with netcdf_file(path, mmap=False) as file:
            arrays = [file.variables[name].data for name in names]
        return [array.astype(array.dtype.newbyteorder("=")) for array in arrays]
    with h5py.File(path) as file:
        root = file["BAG_root"] if entry.form == "bag" else file
        return [root[name][:] for name in names]


def exported_values(path: Path, layers: Sequence[LayerEntry]) -> list[NDArray[Any]]:
    if path.suffix == ".nc":
        with h5py.File(path) as file:
            return [file[layer.name][:] for layer in layers]
    with rasterio.open(path) as file:
        return [file.read(number + 1) for number in range(len(layers))]


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def converted(source: Path, out: Path, bound: str) -> tuple[GridDecoder, float]:
    """A decoder of the converted file, and the CPU seconds it took."""
    job = {
        "source": {"path": str(source)},
        "output": str(out),
        "bound": bound,
        "engine": {"kind": "local", "workers": 0},
    }
    before = time.process_time()
    run_conversion(build_job(ConvertGrids, job))
    seconds = time.process_time() - before
    dataset = GridDataset(open_dataset(out))
    return GridDecoder(dataset, dataset.choose(None)), seconds


def round_trip(source: Path, scratch: Path) -> dict[str, Any]:
    decoder, seconds = converted(source, scratch / "lossless", "lossless")
    entry = decoder.entry
    values = stored_values(source, entry)
    row: dict[str, Any] = {"file": source.name, "cells": entry.height * entry.width, "cpu_seconds": round(seconds, 2)}
    for suffix in (".tif", ".nc"):
        path = scratch / f"back{suffix}"
        export_grid(decoder, str(path))
        row[f"bits{suffix}"] = all(map(same, values, exported_values(path, entry.layers)))
    row["bits_per_cell"] = round(8 * decoder.dataset.dataset.manifest.totals.token_bytes / row["cells"], 3)
    for most in ERRORS:
        decoder, _ = converted(source, scratch / f"within-{most}", f"abs:{most}")
        for suffix in (".tif", ".nc"):
            path = scratch / f"within{suffix}"
            export_grid(decoder, str(path), kinds=["elevation"])
            (cells,) = exported_values(path, entry.layers[:1])
            found = beyond(cells, values[0], entry, most)
            row[f"within {most:g}{suffix}"] = None if found is None else round(found, 6)
        if most == ERROR:
            row["largest_error"] = points(decoder, values[0])
    return row


def beyond(found: NDArray[Any], stored: NDArray[Any], entry: GridEntry, most: float) -> float | None:
    """The largest error of all cells in metres; None where one is beyond what is allowed and a unit in its last place,
    or is no longer a value."""
    layer = entry.elevation
    valid = valid_cells(stored, layer)
    if found.dtype != stored.dtype or (valid_cells(found, layer) != valid).any():
        return None
    unit = abs(layer.scale) * (entry.metres or 1.0)
    error = np.abs(found[valid].astype(np.float64) - stored[valid].astype(np.float64))
    last = np.spacing(np.abs(stored[valid])).astype(np.float64) if stored.dtype.kind == "f" else 0.0
    ok = bool((error <= most / unit * (1 + 1e-9) + last).all())
    return float(error.max(initial=0.0)) * unit if ok else None


def points(decoder: GridDecoder, stored: NDArray[Any]) -> float:
    """The largest error at random cells in metres (or the unit of the grid); 0 without coordinates."""
    reference, entry = decoder.reference, decoder.entry
    if reference.x is None or reference.y is None:
        return 0.0
    draw, worst = np.random.default_rng(0), 0.0
    valid = np.argwhere(valid_cells(stored, entry.elevation))
    chosen = valid[draw.integers(0, len(valid), POINTS)]
    tile, period = decoder.dataset.tile, entry.period or entry.width
    for row, column in chosen[np.lexsort((chosen[:, 1] // tile, chosen[:, 0] // tile))]:
        found = point(decoder, float(reference.x.values[column]), float(reference.y.values[row]))
        if found.value is None or (found.row, found.column % period) != (row, column % period):
            return float("inf")
        exact = float(stored[row, column]) * entry.elevation.scale + entry.elevation.offset
        worst = max(worst, abs(found.value - exact) * (entry.metres or 1.0))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="folder with grid files")
    parser.add_argument("--out", type=Path, help="write the results here too")
    parser.add_argument("--only", nargs="*", help="parts of the names of files")
    options = parser.parse_args()
    results: dict[str, Any] = {"files": []}
    for source in sorted(options.folder.iterdir()) if options.folder else ():
        wanted = not options.only or any(part in source.name for part in options.only)
        if wanted and source.suffix in SUFFIXES and not source.name.startswith("vr_"):
            with tempfile.TemporaryDirectory() as scratch:
                row = round_trip(source, Path(scratch))
            results["files"].append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(any(value is None or value is False for row in results["files"] for value in row.values()))


if __name__ == "__main__":
    sys.exit(main())
