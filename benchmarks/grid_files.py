"""Grid files through a dataset and back, and how much memory a large grid takes.

    python benchmarks/grid_files.py ../shared/data/bathymetry [--scale 43200x8640] [--out results.json]

Each file is converted with `--bound lossless`, exported whole to GeoTIFF and NetCDF, and compared with what h5py, SciPy
and rasterio read of both, bit by bit; then converted with `--bound abs:5` and looked up at 1,000 random cells.
`--scale`: a grid of that many columns x rows, tiled from a synthetic sea floor, is converted in one worker; memory is
the most that any process of the job had resident.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import rasterio
from numpy.typing import NDArray

from tokenshard.engine.convert import run_conversion
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import GridDecoder, point
from tokenshard.grids.export import export_grid
from tokenshard.shards.dataset import open_dataset
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.spec.grids import GridEntry
from tokenshard.spec.job import ConvertGrids, build_job

SUFFIXES = (".nc", ".cdf", ".tif", ".tiff", ".bag")
POINTS = 1000
ERROR = 5.0


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


def exported_values(path: Path, entry: GridEntry) -> list[NDArray[Any]]:
    if path.suffix == ".nc":
        with h5py.File(path) as file:
            return [file[layer.name][:] for layer in entry.layers]
    with rasterio.open(path) as file:
        return [file.read(number + 1) for number in range(len(entry.layers))]


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
        row[f"bits{suffix}"] = all(map(same, values, exported_values(path, entry)))
    row["bits_per_cell"] = round(8 * decoder.dataset.dataset.manifest.totals.token_bytes / row["cells"], 3)
    decoder, _ = converted(source, scratch / "bounded", f"abs:{ERROR}")
    row["largest_error"] = points(decoder, values[0])
    return row


def points(decoder: GridDecoder, stored: NDArray[Any]) -> float | None:
    """The largest error at random cells in metres (or the unit of the grid); None without coordinates."""
    reference, entry = decoder.reference, decoder.entry
    if reference.x is None or reference.y is None:
        return None
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


def large(folder: Path, columns: int, rows: int) -> dict[str, Any]:
    """Convert a grid that is far larger than what a worker may hold."""
    source = folder / "large.nc"
    write_large(source, columns, rows)
    words = [sys.executable, "-m", "tokenshard.cli.main", "convert", "grids", str(source), str(folder / "large")]
    words += ["--bound", "tvu:1a,0.1", "--engine", "local", "--workers", "1", "--quiet", "--json"]
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    peak, over = [0], threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, peak, over))
    watch.start()
    output, _ = process.communicate()
    over.set()
    watch.join()
    found = json.loads(output)
    return {
        "columns": columns,
        "rows": rows,
        "cells": columns * rows,
        "source_bytes": source.stat().st_size,
        "seconds": round(time.monotonic() - started, 1),
        "peak_mib": round(peak[0] / 2**20),
        "bits_per_cell": round(8 * found["token_bytes"] / (columns * rows), 3),
        "tiles": found["num_samples"],
    }


def write_large(path: Path, columns: int, rows: int) -> None:
    """int16 cells in chunks of 256 x 256, a strip at a time: a synthetic sea floor of 2,048 columns, repeated."""
    import h5netcdf

    draw = np.random.default_rng(0)
    field = np.cumsum(np.cumsum(draw.normal(0, 1, (2048, 2048)), axis=0), axis=1)
    field = np.rint(-3000 + 1500 * field / np.abs(field).max() + draw.normal(0, 3, field.shape)).astype(np.int16)
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"lat": rows, "lon": columns}
        for name, size, low, high in (("lat", rows, -60, 60), ("lon", columns, -180, 180)):
            step = (high - low) / size
            axis = file.create_variable(name, (name,), "f8", data=low + step * (np.arange(size) + 0.5))
            axis.attrs["units"] = "degrees_north" if name == "lat" else "degrees_east"
        cells = file.create_variable(
            "elevation", ("lat", "lon"), "i2", chunks=(256, 256), compression="gzip", compression_opts=1
        )
        repeats = -(-columns // 2048)
        for row in range(0, rows, 2048):
            high = min(2048, rows - row)
            cells[row : row + high, :] = np.tile(field[:high], (1, repeats))[:, :columns]


def _watch(pid: int, peak: list[int], over: threading.Event) -> None:
    while not over.wait(0.1):
        try:
            parent = psutil.Process(pid)
            for process in (parent, *parent.children(recursive=True)):
                peak[0] = max(peak[0], process.memory_info().rss)
        except psutil.Error:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="folder with grid files")
    parser.add_argument("--scale", help="COLUMNSxROWS of a large grid")
    parser.add_argument("--out", type=Path, help="write the results here too")
    options = parser.parse_args()
    results: dict[str, Any] = {"files": []}
    for source in sorted(options.folder.iterdir()) if options.folder else ():
        if source.suffix in SUFFIXES and not source.name.startswith("vr_"):
            with tempfile.TemporaryDirectory() as scratch:
                row = round_trip(source, Path(scratch))
            results["files"].append(row)
            print(json.dumps(row), flush=True)
    if options.scale:
        columns, rows = (int(side) for side in options.scale.split("x"))
        with tempfile.TemporaryDirectory() as scratch:
            results["large"] = large(Path(scratch), columns, rows)
        print(json.dumps(results["large"]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
