"""Conversions of grids in this process, and what their datasets decode to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenshard.engine.convert import Conversion, run_conversion
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import GridDecoder
from tokenshard.shards.dataset import open_dataset
from tokenshard.spec.job import ConvertGrids, build_job


def convert_grids(src: Path, out: Path, bound: str = "lossless", **fields: Any) -> Conversion:
    """``fields`` of the source: tile, levels, variable, …; others of the job by `job`."""
    job = {"tokenizer": "grid:8x8,k=32", "engine": {"kind": "local", "workers": 0}, **fields.pop("job", {})}
    source = {"path": str(src), "tile": 32, **fields}
    return run_conversion(build_job(ConvertGrids, {"source": source, "output": str(out), "bound": bound, **job}))


def decoder(out: Path, grid: str | None = None, level: int = 1) -> GridDecoder:
    dataset = GridDataset(open_dataset(out))
    return GridDecoder(dataset, dataset.choose(grid), level)
