"""`tokenshard grid fill`: gaps of a grid filled by a masked token model, and how far off that is where it is known."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.grid import box_option, grid, grid_option, opened
from tokenshard.cli.options import json_option, print_json, print_table, storage_option


@grid.command()
@click.argument("model")
@click.argument("out")
@click.option("--to", help="File to write: .tif or .nc.")
@box_option
@click.option(
    "--band", "bands", default="elevation,tid", show_default=True, help="With commas: elevation, harmonic, tid."
)
@click.option("--reach", type=click.IntRange(1), default=64, show_default=True, help="Cells from known ones, at most.")
@click.option("--check", type=click.IntRange(1), metavar="N", help="Remove N squares, fill them, print the errors.")
@click.option("--hole", type=click.IntRange(2), default=32, show_default=True, help="Cells of a side of such a square.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the places of the squares.")
@grid_option
@storage_option
@json_option
def fill(model: str, out: str, to: str | None, box: Any, bands: str, reach: int, **values: Any) -> None:
    """Fill cells without a value of a grid in the dataset OUT.

    MODEL is the folder of a masked token model that `train mtm` wrote of the same tokens. The means that it expects of
    hidden patches are bent to meet the cells around them. `harmonic` is interpolation without a model; `tid` says which
    cells are filled (41, interpolated). --check prints the errors of both where cells are known, and whether the model
    is a gain.

    \b
    Example:
      tokenshard grid fill masked/ tokens/ --to filled.nc
      tokenshard grid fill masked/ tokens/ --check 40 --hole 32
    """
    from tokenshard.errors import SpecError
    from tokenshard.grids.export import export_grid
    from tokenshard.store import Store
    from tokenshard.training.fill import FilledGrid, measured, verdict_of
    from tokenshard.training.folder import load_model

    if to is None and values["check"] is None:
        raise SpecError("nothing to do: give a file with --to, or --check N")
    dataset = opened(out, values["storage"])
    trained = load_model(Store(model, values["storage"]), "mtm")
    made = FilledGrid(dataset, dataset.choose(values["name"]), trained, reach)
    facts: dict[str, Any] = {"grid": made.entry.uri}
    if values["check"] is not None:
        figures = measured(made, values["check"], values["hole"], values["seed"])
        facts |= {**figures, "verdict": verdict_of(figures)}
    if to is not None:
        kinds = [band.strip() for band in bands.split(",") if band.strip()]
        done = export_grid(made, to, box, kinds, values["storage"])
        facts |= {"path": done.path, "height": done.height, "width": done.width, "bands": list(done.bands)}
    if values["as_json"]:
        print_json(facts)
        return
    unit = made.entry.units or ""
    print_table(
        [(key, f"{value:.2f} {unit}" if isinstance(value, float) else str(value)) for key, value in facts.items()]
    )
