"""`tokenshard convert grids`."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.convert import convert, job_options, run_and_print, split_options
from tokenshard.cli.options import codec_option, storage_option


@convert.command()
@click.argument("src")
@click.argument("out")
@click.option(
    "--bound",
    default="lossless",
    show_default=True,
    help="How far a decoded cell may be off: lossless, abs:E (unit of the values), tvu:ORDER,SHARE, or none.",
)
@click.option("--guided", is_flag=True, help="Predict cells from the tokens too: both together take less.")
@click.option(
    "--tokenizer",
    default="grid",
    show_default=True,
    help="grid:OPTIONS trained on the input (e.g. grid:8x8,k=256,codebooks=2,step=16), or a saved tokenizer's folder.",
)
@codec_option("pack", "zstd", "context", measured="measured on a sample")
@click.option("--variable", help="Variable (NetCDF, Zarr) or band (GeoTIFF) with the values. [default: found out]")
@click.option("--tile", type=click.IntRange(16, 4096), default=256, show_default=True, help="Cells of a tile's side.")
@click.option("--levels", default="1", show_default=True, help="Reductions to keep too, with commas: 1,2,4,8.")
@click.option("--crs", help="Reference system of grids that declare none, e.g. EPSG:4326.")
@click.option("--unit-samples", type=click.IntRange(1), help="Most tiles of a work unit (one shard). [default: 512]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@storage_option
@job_options
def grids(src: str, out: str, **values: Any) -> None:
    """Convert bathymetry and other grids to a token dataset.

    SRC is a file, folder, glob or s3:// prefix of NetCDF, GeoTIFF, Esri ASCII, BAG or S-102 files, or a Zarr folder.
    Each tile becomes tokens and, beside them, its cells within --bound. `tokenshard grid decode` writes grids back.

    \b
    Example:
      tokenshard convert grids GEBCO_2024.nc tokens/ --bound tvu:1a,0.1 --levels 1,2,4,8
      tokenshard convert grids surveys/ tokens/ --bound lossless
    """
    from tokenshard.spec.job import ConvertGrids, build_job

    fields, mode, display = split_options(values)
    source = {"path": src, "tile": values["tile"], "levels": _levels(values["levels"])}
    source |= {name: values[name] for name in ("variable", "crs") if values[name]}
    if values["unit_samples"]:
        fields["unit"] = {"samples": values["unit_samples"], "bytes": "64MiB"}
    fields |= {name: values[name] for name in ("bound", "guided", "tokenizer", "codec", "seed", "storage")}
    run_and_print(build_job(ConvertGrids, {"source": source, "output": out, **fields}), mode, **display)
    if not mode["dry_run"] and not display["quiet"]:
        _note_missing_systems(out, values["storage"])


def _note_missing_systems(out: str, storage: dict[str, Any]) -> None:
    """Say which grids have no reference system: nothing is wrong with them, but a map needs one."""
    from tokenshard.grids.dataset import GridDataset
    from tokenshard.shards.dataset import open_dataset

    grids = GridDataset(open_dataset(out, storage)).grids.values()
    without = [stored.entry.uri for stored in grids if stored.entry.crs is None]
    if without:
        shown = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
        click.echo(
            f"note: {len(without):,} of {len(grids):,} grids declare no reference system ({shown}); where you know it, "
            "convert again with --crs, e.g. --crs EPSG:4326",
            err=True,
        )


def _levels(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r}: expected whole numbers with commas, e.g. 1,2,4,8", param_hint="--levels")
    return sorted({int(part) for part in parts})
