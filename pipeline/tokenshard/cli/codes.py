"""`tokenshard transcode` and `import`: datasets made of ids, not of raw data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tokenshard.cli.convert import job_options, run_and_print, split_options
from tokenshard.cli.options import codec_option, storage_option

F = TypeVar("F", bound=Callable[..., Any])


def _names(ctx: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


def _dataset_options(command: F) -> F:
    """Options that decide how ids are stored."""
    options = [
        codec_option("pack", "zstd", "context", "copy", measured="measured on a sample, level by level"),
        click.option("--unit-samples", type=click.IntRange(1), help="Most samples of a shard. [default: 65536]"),
        click.option("--unit-bytes", help="Most bytes of input for a shard, e.g. 64MiB. [default: 256MiB]"),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return storage_option(command)


def _run(kind: str, source: dict[str, Any], out: str, values: dict[str, Any]) -> None:
    from tokenshard.spec.job import JOB_KINDS, build_job

    unit = {"samples": values.pop("unit_samples"), "bytes": values.pop("unit_bytes")}
    given = {name: values.pop(name) for name in ("codec", "seed", "storage")}
    fields, mode, display = split_options(values)
    limits = JOB_KINDS[kind].model_fields["unit"].default.model_dump()
    fields["unit"] = {**limits, **{name: value for name, value in unit.items() if value is not None}}
    source = {name: value for name, value in source.items() if value is not None}
    run_and_print(build_job(JOB_KINDS[kind], {"source": source, "output": out, **given, **fields}), mode, **display)


@click.command()
@click.argument("out")
@click.argument("dst")
@click.option("--version", type=click.IntRange(1), help="Version of OUT. [default: the newest]")
@click.option("--levels", type=click.IntRange(1), help="Keep only the first so many levels of the ids.")
@click.option(
    "--codebook-size", callback=_names, help="Merge like codes until so many are left; with commas one for each level."
)
@click.option("--coarse", type=click.IntRange(1), help="Split the first level into so many coarse ids, and fine ids.")
@click.option("--used-codes", is_flag=True, help="Number the ids that occur afresh; the table is in the manifest.")
@click.option(
    "--keys",
    default="keep",
    show_default=True,
    help="keep; prefix:TEXT puts TEXT before every key; column:NAME takes the values of a column.",
)
@click.option("--columns", callback=_names, help="Label and metadata columns to keep, with commas. [default: all]")
@click.option("--drop", callback=_names, help="Label and metadata columns to leave out, with commas.")
@_dataset_options
@job_options
def transcode(out: str, dst: str, **values: Any) -> None:
    """Rewrite the token dataset OUT as DST: at a lower rate, with another codec, other shards, keys or columns.

    No pixels are needed. Ids stay what they are, except with --codebook-size and --coarse, which give DST a tokenizer
    derived from that of OUT. Run the same command again to resume.

    \b
    Example:
      tokenshard transcode tokens/ smaller/ --codec context
      tokenshard transcode tokens/ coarse/ --levels 2 --drop caption
      tokenshard transcode tokens/ small/ --codebook-size 64
      tokenshard transcode s3://bucket/tokens/ s3://bucket/merged/ --unit-samples 100000
    """
    source = {name: values.pop(name) for name in ("version", "levels", "coarse", "used_codes")}
    source |= {name: values.pop(name) for name in ("keys", "columns", "drop")}
    sizes = values.pop("codebook_size")
    source["codebook_size"] = sizes[0] if sizes is not None and len(sizes) == 1 else sizes
    _run("transcode", {"path": out, **source}, dst, values)


@click.command("import")
@click.argument("format_name", metavar="FORMAT")
@click.argument("src")
@click.argument("out")
@click.option("--alphabet", callback=_names, help="Ids are below this; with commas one for each level.")
@click.option("--grid", help="Token grid of a sample, e.g. 16x16. [default: the shape it has]")
@click.option("--column", help="Column, member or array with the ids. [default: by its usual names]")
@click.option("--key-column", help="Column, member or array with the keys.")
@click.option("--labels", default="auto", show_default=True, help="auto, none, or a column.")
@click.option("--tokenizer", help="Folder of the saved tokenizer that decodes the ids.")
@click.option(
    "--modality",
    type=click.Choice(["auto", "image", "video", "grid", "document", "generic"]),
    default="auto",
    show_default=True,
    help="What the ids stand for.",
)
@click.option("--levels", type=click.IntRange(1), help="Levels of the ids, where the format does not say. [default: 1]")
@_dataset_options
@job_options
def import_(format_name: str, src: str, out: str, **values: Any) -> None:
    """Turn ids in the files SRC of another format into the token dataset OUT.

    FORMAT is one of parquet, webdataset, npy, npz, hf (Hugging Face datasets), mds (MosaicML streaming), litdata,
    megatron (.bin/.idx) and seit.

    \b
    Example:
      tokenshard import npy codes.npy tokens/ --alphabet 1024
      tokenshard import webdataset s3://bucket/tars/ tokens/
    """
    alphabet, grid = values.pop("alphabet"), values.pop("grid")
    source = {name: values.pop(name) for name in ("column", "key_column", "labels", "tokenizer", "modality")}
    source |= {"alphabet": alphabet[0] if alphabet is not None and len(alphabet) == 1 else alphabet}
    levels = values.pop("levels")
    source |= {"options": {"levels": levels} if levels is not None else None}
    source |= {"grid": grid.lower().split("x") if grid is not None else None}
    _run("import", {"path": src, "format": format_name, **source}, out, values)
