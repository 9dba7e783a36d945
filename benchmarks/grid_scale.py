"""A grid far larger than a worker's memory: peak memory, speed, and what killed processes change.

    python benchmarks/grid_scale.py [--cells 373248000] [--workers 2] [--data FOLDER] [--scratch FOLDER] [--out FILE]

A GEBCO-like NetCDF of five times as many columns as rows is made of the 1' grid of Middle America, mirrored so that it
has no seams (without --data, of a surface of random slopes). It is converted twice with `--bound tvu:1a,0.1`: once
undisturbed; once with a worker killed at a third of the work, and the driver with all its workers at two thirds, after
which the same command is run again. Shards must be the same bytes. Memory is the peak resident size that the kernel
reports for each process. The exit code is 1 where one held more than 1.5 GiB or a byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from conversion.processes import watching
from numpy.typing import NDArray

BOUND = "tvu:1a,0.1"
TILE = 256
ASPECT = 5
MOST_MIB = 1536


def pattern(data: Path | None) -> NDArray[np.int16]:
    """Heights ``[h, w]`` that can be laid side by side."""
    if data is not None:
        from gridding.loading import DATASETS, load

        z = load(data, DATASETS["ETOPO1"])[0].astype(np.int16)
    else:
        draw = np.random.default_rng(0)
        field = np.cumsum(np.cumsum(draw.normal(0, 1, (729, 1009)), axis=0), axis=1)
        z = np.rint(-3000 + 1500 * field / np.abs(field).max() + draw.normal(0, 3, field.shape)).astype(np.int16)
    wide = np.concatenate([z, z[:, ::-1]], axis=1)
    return np.concatenate([wide, wide[::-1]], axis=0)


def write_large(path: Path, rows: int, columns: int, values: NDArray[np.int16]) -> None:
    """A NetCDF 4 with chunks of 256 x 256, a strip of them at a time."""
    import h5netcdf

    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"lat": rows, "lon": columns}
        for name, size, low, high in (("lat", rows, -36, 36), ("lon", columns, -180, 180)):
            step = (high - low) / size
            axis = file.create_variable(name, (name,), "f8", data=low + step * (np.arange(size) + 0.5))
            axis.attrs["units"] = "degrees_north" if name == "lat" else "degrees_east"
        cells = file.create_variable(
            "elevation", ("lat", "lon"), "i2", chunks=(TILE, TILE), compression="gzip", compression_opts=1
        )
        cells.attrs["units"] = "m"
        across = np.arange(columns) % values.shape[1]
        for row in range(0, rows, TILE):
            down = np.arange(row, min(row + TILE, rows)) % values.shape[0]
            cells[row : row + len(down), :] = values[down][:, across]


def started(source: Path, out: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tokenshard.cli.main", "convert", "grids", str(source), str(out)]
    words += ["--bound", BOUND, "--engine", "local", "--workers", str(options.workers), "--quiet", "--json"]
    if options.unit:
        words += ["--unit-samples", str(options.unit)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the conversion ended with exit code {process.returncode}")
    return dict(json.loads(output))


def shards(out: Path) -> list[Path]:
    return sorted((out / "data").glob("*.parquet"))


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> bool:
    """Until there are that many shards (True) or the process has ended."""
    while process.poll() is None:
        if len(shards(out)) >= count:
            return True
        time.sleep(0.1)
    return False


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "tokenshard.engine.worker" in child.cmdline()]


def disturbed(source: Path, out: Path, units: int, options: argparse.Namespace) -> int:
    """Convert with kills on the way; returns the processes that were killed."""
    killed = 0
    process = started(source, out, options)
    if wait_for(out, max(1, units // 3), process):
        workers_of(process)[0].kill()
        killed += 1
    if wait_for(out, max(2, 2 * units // 3), process):
        for victim in workers_of(process):
            victim.kill()
            killed += 1
        process.kill()
        process.communicate()
        killed += 1
    else:
        finished(process)
    finished(started(source, out, options))
    return killed


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of each shard."""
    found = {}
    for path in shards(out):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows = max(TILE, round(math.sqrt(options.cells / ASPECT)))
    columns = options.cells // rows
    source = folder / "large.nc"
    write_large(source, rows, columns, pattern(options.data))
    peaks: dict[str, float] = defaultdict(float)
    began = time.monotonic()
    process = started(source, folder / "calm", options)
    with watching(process.pid, peaks) as cpu:
        found = finished(process)
    calm = digests(folder / "calm")
    row = {
        "rows": rows,
        "columns": columns,
        "cells": rows * columns,
        "source_mib": round(source.stat().st_size / 2**20),
        "shards": len(calm),
        "tiles": found["num_samples"],
        "workers": options.workers,
        "seconds": round(time.monotonic() - began),
        "cpu_seconds": round(sum(cpu.values())),
        "peak_mib": {role: round(size) for role, size in peaks.items()},
        "bits_per_cell": round(8 * found["token_bytes"] / (rows * columns), 3),
    }
    if options.undisturbed:
        return row
    row["killed"] = disturbed(source, folder / "killed", len(calm), options)
    return row | {"same_bytes": digests(folder / "killed") == calm}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=43_200 * 8_640, help="of the grid, about")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unit", type=int, help="tiles of a work unit")
    parser.add_argument("--undisturbed", action="store_true", help="without the second conversion")
    parser.add_argument("--data", type=Path, help="folder of real grids")
    parser.add_argument("--scratch", type=Path, help="folder for some GB of files, deleted afterwards")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        row = measure(options, Path(folder))
    print(json.dumps(row, indent=1))
    if options.out:
        options.out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    return int(max(row["peak_mib"].values()) > MOST_MIB or not row.get("same_bytes", True))


if __name__ == "__main__":
    sys.exit(main())
