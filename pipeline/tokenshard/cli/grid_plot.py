"""`tokenshard grid plot`: maps and charts of grids."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.grid import box_option, grid, grid_option, level_option, opened
from tokenshard.cli.grid_uncertainty import read_regions, tested
from tokenshard.cli.options import json_option, print_json, storage_option

to_option = click.option("--to", required=True, type=click.Path(dir_okay=False), help="PNG to write.")


@grid.group()
def plot() -> None:
    """Draw maps and charts of grids.

    \b
    Example:
      tokenshard grid plot map tokens/ --to map.png
      tokenshard grid plot reliability tokens/ --to reliability.png
    """


@plot.command("map")
@click.argument("out")
@to_option
@box_option
@grid_option
@level_option
@storage_option
@json_option
def map_(out: str, to: str, box: Any, name: str | None, level: int, **values: Any) -> None:
    """Draw depths under a low sun; land is grey, cells without a value are hatched.

    \b
    Example:
      tokenshard grid plot map tokens/ --bbox 170,-20,-170,-10 --to fiji.png
    """
    from tokenshard.report.grid_maps import depth_map

    depth_map(_decoder(out, name, level, None, values), to, box)
    _done(values, to)


@plot.command()
@click.argument("out")
@to_option
@click.option(
    "--band",
    type=click.Choice(["width", "conformal", "uncertainty"]),
    default="width",
    show_default=True,
    help="Measured widths of the tokens, calibrated ones, or the uncertainty of the cells.",
)
@click.option("--calibration", help="Id or level (0.9) of the calibration for `conformal`, where there are several.")
@box_option
@grid_option
@level_option
@storage_option
@json_option
def uncertainty(
    out: str, to: str, band: str, calibration: str | None, box: Any, name: str | None, level: int, **values: Any
) -> None:
    """Draw widths or uncertainty on a log scale.

    \b
    Example:
      tokenshard grid plot uncertainty tokens/ --band conformal --to widths.png
    """
    from tokenshard.report.grid_maps import width_map

    width_map(_decoder(out, name, level, calibration, values), to, box, band)
    _done(values, to)


@plot.command()
@click.argument("out")
@click.argument("truth", required=False)
@to_option
@click.option("--regions", help="Grids to test, with commas. [default: all but those of the calibration]")
@click.option("--calibration", "name", help="Id or level (0.9) of the calibration, where there are several.")
@storage_option
@json_option
def reliability(out: str, truth: str | None, to: str, regions: str | None, name: str | None, **values: Any) -> None:
    """Draw nominal against found coverage, 50 to 99 %, by class of roughness, with bands over tiles drawn again.

    At each level widths are calibrated anew on the regions of the calibration. The figures lie in a .csv beside it.

    \b
    Example:
      tokenshard grid plot reliability tokens/ --regions china.nc --to reliability.png
    """
    from tokenshard.grids.calibrations import choose_calibration
    from tokenshard.grids.coverage import joined
    from tokenshard.grids.coverage import reliability as measured
    from tokenshard.report.grid_charts import reliability_chart

    dataset, storage = opened(out, values["storage"]), values["storage"]
    stored = choose_calibration(dataset.dataset, "tokens" if truth is None else "elevation", name)
    keys = tested(dataset, regions, stored.regions)
    known = joined(read_regions(dataset, stored.regions, stored.band, stored.by, truth, storage))
    found = [
        line
        for region in read_regions(dataset, keys, stored.band, stored.by, truth, storage)
        for line in measured(region, known, stored.calibration)
    ]
    _done(values, to, str(reliability_chart(found, to)))


@plot.command()
@click.argument("out")
@click.argument("truth")
@to_option
@click.option("--order", default="1a", show_default=True, help="Of IHO S-44: exclusive, special, 1a, 1b or 2.")
@grid_option
@storage_option
@json_option
def tvu(out: str, truth: str, to: str, order: str, name: str | None, **values: Any) -> None:
    """Draw errors of decoded cells against depth, with the bound and the total vertical uncertainty (TVU) of an order.

    TRUTH is the file that was converted, or a lossless dataset of it.

    \b
    Example:
      tokenshard grid plot tvu tokens/ GEBCO_2024.nc --to tvu.png
    """
    from tokenshard.grids.scores import truth_of
    from tokenshard.report.grid_charts import tvu_chart
    from tokenshard.spec.grids import TVU_ORDERS

    if order not in TVU_ORDERS:
        raise click.BadParameter(f"{order!r}: there are {', '.join(TVU_ORDERS)}", param_hint="--order")
    decoder = _decoder(out, name, 1, None, values)
    true = truth_of(decoder.dataset, decoder.grid, truth, values["storage"])
    _done(values, to, str(tvu_chart(decoder, true, to, order)))


@plot.command("rate-distortion")
@click.argument("out")
@to_option
@click.option("--errors", help="Largest errors, with commas. [default: four shares of the range of values]")
@grid_option
@storage_option
@json_option
def rate_distortion(out: str, to: str, errors: str | None, name: str | None, **values: Any) -> None:
    """Draw bits a cell against the largest error, beside SZ3, LERC, ZFP and JPEG XL where they are installed.

    OUT is a lossless dataset; its middle (512 x 512 cells) is coded again by each. `pip install 'tokenshard[bench]'`
    installs the others.

    \b
    Example:
      tokenshard grid plot rate-distortion tokens/ --errors 0.5,5,25 --to rates.png
    """
    from tokenshard.report.grid_charts import rate_distortion_chart

    try:
        bounds = [float(part) for part in (errors or "").split(",") if part.strip()]
    except ValueError:
        bounds = [0.0]
    if any(not 0 < bound < float("inf") for bound in bounds):
        raise click.BadParameter(
            f"{errors!r}: expected positive numbers with commas, e.g. 0.5,5,25", param_hint="--errors"
        )
    found = rate_distortion_chart(_decoder(out, name, 1, None, values), to, bounds)
    if values["as_json"]:
        print_json({"path": to, "rates": [vars(rate) for rate in found]})
        return
    for rate in found:
        click.echo(f"{rate.codec:10}  {rate.bound:g}: {rate.bits_per_cell:.3f} bits a cell (RMSE {rate.rmse:.3g})")
    click.echo(f"wrote {to}")


def _decoder(out: str, name: str | None, level: int, calibration: str | None, values: dict[str, Any]) -> Any:
    from tokenshard.grids.decode import GridDecoder

    dataset = opened(out, values["storage"])
    return GridDecoder(dataset, dataset.choose(name), level, calibration)


def _done(values: dict[str, Any], to: str, figures: str | None = None) -> None:
    if values["as_json"]:
        print_json({"path": to, **({"figures": figures} if figures else {})})
        return
    click.echo(f"wrote {to}" + (f" and {figures}" if figures else ""))
