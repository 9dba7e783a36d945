"""`tokenshard grid calibrate` and `coverage`: conformal widths, and whether they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import click

from tokenshard.cli.grid import grid, opened
from tokenshard.cli.options import json_option, print_json, print_table, storage_option

truth_option = click.option(
    "--truth",
    help="Dataset or file with the true values of the same cells, for grids that were generated or filled. "
    "[default: OUT's own cells, the truth of its tokens]",
)


@grid.command()
@click.argument("out")
@click.option("--regions", required=True, help="Grids with known truth to calibrate on, with commas: paths or ids.")
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True)
@click.option("--by", default="roughness", show_default=True, help="With commas: roughness, depth, tid.")
@click.option("--classes", type=click.IntRange(1, 50), default=5, show_default=True, help="Classes of roughness.")
@click.option("--normalised/--plain", default=True, show_default=True, help="Divide errors by roughness first.")
@truth_option
@storage_option
@json_option
def calibrate(out: str, regions: str, alpha: float, by: str, **values: Any) -> None:
    """Calibrate conformal widths on regions whose truth is known, and keep them in the dataset.

    Of new cells like those, at most a share of ALPHA lies outside; `grid decode --band tokens,conformal` gives the
    widths. Calibrate on whole regions that lie apart from those the widths are for.

    \b
    Example:
      tokenshard grid calibrate tokens/ --regions guinea.nc,arabia.nc --alpha 0.1 --by roughness,depth
    """
    from tokenshard.grids.calibrations import StoredCalibration, add_calibration
    from tokenshard.grids.conformal import calibrate as conformal
    from tokenshard.grids.coverage import joined
    from tokenshard.grids.strata import checked_by

    told_apart = checked_by(words(by))
    dataset = opened(out, values["storage"])
    band = "tokens" if values["truth"] is None else "elevation"
    names = [dataset.choose(name) for name in words(regions)]
    known = joined(read_regions(dataset, names, band, told_apart, values["truth"], values["storage"]))
    found = conformal(known.tiles, alpha, values["classes"], values["normalised"])
    fingerprint = dataset.dataset.manifest.tokenizer.fingerprint
    stored = StoredCalibration(found, band, told_apart, tuple(names), fingerprint)
    manifest, name = add_calibration(dataset.dataset, stored)
    paths = [dataset.grids[key].entry.uri for key in names]
    facts = {
        "calibration": name,
        "version": manifest.version,
        "band": band,
        "alpha": alpha,
        "by": list(told_apart),
        "regions": paths,
        "num_tiles": found.num_tiles,
        "num_scores": found.num_scores,
        "edges": list(found.edges),
        "quantiles": list(found.quantiles),
        "groups": [{"group": number, "quantiles": [_number(q) for q in own]} for number, own in found.by_group],
    }
    if values["as_json"]:
        print_json(facts)
        return
    print_table(
        [
            ("calibration", f"{name} (version {manifest.version} of {out})"),
            ("widths", f"around {band}: {1 - alpha:.1%} of cells, by {', '.join(told_apart)}"),
            ("made on", f"{found.num_scores:,} cells of {found.num_tiles:,} tiles: {', '.join(paths)}"),
            ("roughness", " | ".join(f"{edge:.4g}" for edge in found.edges) or "one class"),
            ("factors" if found.normalised else "widths", "  ".join(f"{q:.4g}" for q in found.quantiles)),
        ]
    )


@grid.command()
@click.argument("out")
@click.argument("truth", required=False)
@click.option("--regions", help="Grids to test, with commas. [default: all but those of the calibration]")
@click.option("--calibration", "name", help="Id or level (0.9) of the calibration, where there are several.")
@storage_option
@json_option
def coverage(
    out: str, truth: str | None, regions: str | None, name: str | None, storage: dict[str, Any], as_json: bool
) -> None:
    """Measure how often the truth lies within conformal widths, and within those of other methods.

    TRUTH is a dataset or a file with the true values of the same cells; without it OUT's own cells are the truth of its
    tokens. Intervals draw tiles of 64 x 64 cells again: cells of one tile are nearly one observation. Classes are those
    of the calibration, smooth to rough.

    \b
    Example:
      tokenshard grid coverage tokens/
      tokenshard grid coverage filled/ surveyed.nc --regions filled.nc
    """
    from dataclasses import asdict

    from tokenshard.grids.calibrations import choose_calibration
    from tokenshard.grids.coverage import compare, joined

    dataset = opened(out, storage)
    stored = choose_calibration(dataset.dataset, "tokens" if truth is None else "elevation", name)
    keys = tested(dataset, regions, stored.regions)
    known = None
    if set(stored.regions) <= dataset.grids.keys() and truth is None:
        known = joined(read_regions(dataset, stored.regions, stored.band, stored.by, None, storage))
    found = [
        line
        for region in read_regions(dataset, keys, stored.band, stored.by, truth, storage)
        for line in compare(region, stored.calibration, known)
    ]
    if as_json:
        print_json([asdict(line) | {"calibration": stored.id} for line in found])
        return
    for line in found:
        whole = line.whole
        shares = " ".join("  - " if math.isnan(part.share) else f"{part.share:.2f}" for part in line.by_class)
        click.echo(
            f"{line.region}  {line.method:13}  {line.nominal:.0%} wanted: {whole.share:.3f} "
            f"[{whole.low:.3f}, {whole.high:.3f}]  by class: {shares}  mean width {line.mean_width:.4g}  "
            f"({whole.num_cells:,} cells of {whole.num_tiles:,} tiles)"
        )


def words(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def tested(dataset: Any, regions: str | None, calibrated_on: Sequence[str]) -> list[str]:
    """The grids to test: those named, or all that a calibration has not seen."""
    if regions is not None:
        return [dataset.choose(name) for name in words(regions)]
    found = [key for key in dataset.grids if key not in calibrated_on]
    if not found:
        raise click.UsageError(
            "every grid of the dataset was calibrated on; coverage is to be measured elsewhere: convert another region "
            "with --append, or name grids with --regions"
        )
    return found


def read_regions(
    dataset: Any, grids: Sequence[str], band: str, by: Sequence[str], truth: str | None, storage: dict[str, Any]
) -> list[Any]:
    """The tiles of grids with their errors."""
    from tokenshard.grids.scores import read_region, truth_of

    return [
        read_region(dataset, key, band, by, None if truth is None else truth_of(dataset, key, truth, storage))
        for key in grids
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
