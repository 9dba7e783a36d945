"""`tokenshard grid`: decode grids of a token dataset, whole or in part, and look up points."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.options import json_option, print_json, print_table, storage_option


def _box(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise click.BadParameter(f"{text!r}: expected WEST,SOUTH,EAST,NORTH, e.g. 170,-20,-170,-10")
    return numbers


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected X,Y (of degrees: LONGITUDE,LATITUDE)") from None
    return x, y


grid_option = click.option("--grid", "name", help="Path or id of the grid, where the dataset has several.")
level_option = click.option(
    "--level", type=click.IntRange(1), default=1, show_default=True, help="Stored reduction to read."
)


box_option = click.option(
    "--bbox", "box", callback=_box, help="WEST,SOUTH,EAST,NORTH in the grid's coordinates. [default: all]"
)


@click.group()
def grid() -> None:
    """Decode grids of a token dataset, and say how sure they are.

    \b
    Example:
      tokenshard grid decode tokens/ --bbox 170,-20,-170,-10 --to fiji.tif
      tokenshard grid point tokens/ 142.2,11.35
      tokenshard grid calibrate tokens/ --regions guinea.nc,arabia.nc
    """


@grid.command("list")
@click.argument("out")
@storage_option
@json_option
def list_(out: str, storage: dict[str, Any], as_json: bool) -> None:
    """List the grids of a dataset: size, levels, place, reference system.

    \b
    Example:
      tokenshard grid list tokens/
    """
    dataset = opened(out, storage)
    found = []
    for key, stored in dataset.grids.items():
        entry = stored.entry
        found.append(
            {
                "grid": key,
                "path": entry.uri,
                "height": entry.height,
                "width": entry.width,
                "levels": dataset.levels(key),
                "variable": entry.elevation.name,
                "dtype": entry.elevation.dtype,
                "units": entry.units,
                "positive": entry.positive,
                "crs": entry.crs,
                "rows": entry.rows,
                "registration": entry.registration,
                "layers": [layer.name for layer in entry.layers],
            }
        )
    if as_json:
        print_json(found)
        return
    for item in found:
        crs = "no reference system" if item["crs"] is None else item["crs"].split('"')[1]
        layers, levels = ", ".join(item["layers"]), ", ".join(map(str, item["levels"]))
        size = f"{item['height']:,} x {item['width']:,} {item['dtype']}"
        click.echo(f"{item['grid']}  {item['path']}: {layers}; {size}; levels {levels}; {crs}")


@grid.command()
@click.argument("out")
@click.option("--to", required=True, help="File to write: .tif or .nc.")
@box_option
@click.option(
    "--band",
    "bands",
    help="With commas: elevation, shoalest, lower, upper, uncertainty, source, tokens, width, conformal.",
)
@click.option(
    "--calibration", help="Id or level (0.9) of the calibration of conformal widths, where there are several."
)
@grid_option
@level_option
@storage_option
@json_option
def decode(out: str, to: str, box: Any, bands: str | None, name: str | None, level: int, **values: Any) -> None:
    """Write a grid, or the part of it in a box, as GeoTIFF or NetCDF.

    Only the tiles of the box are read. A box whose west lies beyond its east crosses 180 degrees. `lower` and `upper`
    hold the true value of every cell; `uncertainty` adds what coding costs to the survey's own (95 %).

    \b
    Example:
      tokenshard grid decode tokens/ --to grid.nc
      tokenshard grid decode tokens/ --bbox 170,-20,-170,-10 --level 2 --band elevation,lower,upper --to fiji.tif
    """
    from dataclasses import asdict

    from tokenshard.grids.decode import GridDecoder
    from tokenshard.grids.export import export_grid
    from tokenshard.readable import readable_bytes

    dataset = opened(out, values["storage"])
    decoder = GridDecoder(dataset, dataset.choose(name), level, values["calibration"])
    kinds = None if bands is None else [band.strip() for band in bands.split(",") if band.strip()]
    done = export_grid(decoder, to, box, kinds, values["storage"])
    if values["as_json"]:
        print_json(asdict(done))
        return
    error = "tokens only" if done.max_error is None else f"{done.bound}; largest error {done.max_error:g}"
    print_table(
        [
            ("grid", f"{done.grid}, level {done.level}"),
            ("written", f"{done.path} ({readable_bytes(done.bytes)})"),
            ("cells", f"{done.height:,} x {done.width:,} {done.dtype}"),
            ("bands", ", ".join(done.bands)),
            ("bound", error),
        ]
    )


@grid.command()
@click.argument("out")
@click.argument("points", nargs=-1, required=True, metavar="X,Y...")
@grid_option
@level_option
@storage_option
@json_option
def point(
    out: str, points: tuple[str, ...], name: str | None, level: int, storage: dict[str, Any], as_json: bool
) -> None:
    """Look up the cells that points lie in: value, and the limits its true value lies within.

    Write `--` before points that begin with a minus sign.

    \b
    Example:
      tokenshard grid point tokens/ 142.2,11.35
      tokenshard grid point tokens/ -- -70.1,-23.5
    """
    from dataclasses import asdict

    from tokenshard.grids.decode import GridDecoder
    from tokenshard.grids.decode import point as look_up

    dataset = opened(out, storage)
    decoder = GridDecoder(dataset, dataset.choose(name), level)
    found = [look_up(decoder, *_point(text)) for text in points]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    unit = decoder.entry.units or ""
    for one in found:
        value = "no value" if one.value is None else f"{one.value:g} {unit} ({one.lower:g} to {one.upper:g})"
        click.echo(f"{one.x:g},{one.y:g}: {value}")


def opened(out: str, storage: dict[str, Any]) -> Any:
    """The grids of a dataset."""
    from tokenshard.grids.dataset import GridDataset
    from tokenshard.shards.dataset import open_dataset

    return GridDataset(open_dataset(out, storage))
