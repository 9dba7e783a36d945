"""`tokenshard grid upscale`: a stored level at twice its resolution, as a trained network draws it."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.grid import box_option, grid, grid_option, level_option, opened
from tokenshard.cli.options import json_option, print_json, print_table, storage_option


@grid.command()
@click.argument("model")
@click.argument("out")
@click.option("--to", required=True, help="File to write: .tif or .nc.")
@box_option
@click.option("--band", "bands", default="elevation", show_default=True, help="With commas: elevation, bicubic.")
@grid_option
@level_option
@storage_option
@json_option
def upscale(model: str, out: str, to: str, box: Any, bands: str, name: str | None, level: int, **values: Any) -> None:
    """Write a grid of the dataset OUT at twice the resolution of a level.

    MODEL is the folder that `train grid-sr` wrote. Each cell becomes four of half its sides. What is drawn is a guess,
    not a survey: it has no bound. `bicubic` is the interpolation that the training measured it against.

    \b
    Example:
      tokenshard grid upscale upscaler/ tokens/ --bbox 120,10,125,15 --to luzon.tif
      tokenshard grid upscale upscaler/ tokens/ --level 2 --band elevation,bicubic --to like-level-1.nc
    """
    from dataclasses import asdict

    from tokenshard.grids.export import export_grid
    from tokenshard.readable import readable_bytes
    from tokenshard.store import Store
    from tokenshard.training.folder import load_model
    from tokenshard.training.upscale import UpscaledGrid

    dataset = opened(out, values["storage"])
    trained = load_model(Store(model, values["storage"]), "grid-sr")
    made = UpscaledGrid(dataset, dataset.choose(name), trained, level)
    done = export_grid(made, to, box, [band.strip() for band in bands.split(",") if band.strip()], values["storage"])
    if values["as_json"]:
        print_json(asdict(done))
        return
    print_table(
        [
            ("grid", f"{done.grid}, twice level {done.level}"),
            ("written", f"{done.path} ({readable_bytes(done.bytes)})"),
            ("cells", f"{done.height:,} x {done.width:,} {done.dtype}"),
            ("bands", ", ".join(done.bands)),
        ]
    )
