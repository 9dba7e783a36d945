"""`tokenshard export`: a dataset in the format of another program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tokenshard.cli.options import json_option, print_json, print_table, storage_option

if TYPE_CHECKING:
    from tokenshard.shards.export.registry import Exported

FORMATS = ("parquet", "webdataset", "npy", "npz", "hf", "mds", "litdata", "megatron", "seit")
PAGE_FORMATS = ("qdrant", "vespa", "vectors", "lance", "fast-plaid")
ALL_FORMATS = (*FORMATS, *PAGE_FORMATS, "mp4")


def _names(ctx: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


@click.command()
@click.argument("out")
@click.argument("dst")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(ALL_FORMATS),
    required=True,
    metavar="FORMAT",
    help=f"What to write: {', '.join(ALL_FORMATS)}.",
)
@click.option("--columns", callback=_names, help="Label and metadata columns to keep, with commas. [default: all]")
@click.option("--split", help="Export only this split. [default: all of them]")
@click.option("--shard-bytes", help="Size of the files, where the format has many: e.g. 64MiB.")
@click.option("--version", type=click.IntRange(1), help="Version of OUT. [default: the newest]")
@click.option("--key", "keys", multiple=True, help="mp4: this clip. Repeatable. [default: all]")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@storage_option
@json_option
def export(out: str, dst: str, **values: Any) -> None:
    """Write the token dataset OUT to the empty folder or URL DST in another format.

    Keys, labels and the tokenizer go along: `tokenshard import FORMAT DST OUT` gives the dataset back. mp4 writes
    reconstructed clips as videos; qdrant, vespa, vectors, lance and fast-plaid write the vectors of document pages.

    \b
    Example:
      tokenshard export tokens/ tars/ --format webdataset
      tokenshard export tokens/ s3://bucket/parquet/ --format parquet --columns label --split train
    """
    from tokenshard.engine.progress import Progress
    from tokenshard.shards.dataset import open_dataset
    from tokenshard.shards.export.registry import export as export_dataset

    dataset = open_dataset(out, values["storage"], values["version"])
    if values["format_name"] == "mp4":
        from tokenshard.report.movies import write_movies

        lines = write_movies(dataset, list(values["keys"]), len(dataset), dst)
        if values["as_json"]:
            print_json({"format": "mp4", "destination": dst, "files": len(lines), "movies": lines})
        for line in () if values["as_json"] else lines:
            click.echo(line)
        return
    options = {"shard_bytes": values["shard_bytes"]} if values["shard_bytes"] else {}
    if values["format_name"] in PAGE_FORMATS:
        from tokenshard.retrieval.export.registry import export_pages

        if values["split"]:
            raise click.UsageError("--split is of token ids; pages are exported whole")
        done = export_pages(
            dataset,
            dst,
            values["format_name"],
            columns=values["columns"],
            storage=values["storage"],
            options=options,
        )
        _print(done, values["as_json"])
        return
    with Progress.silent() if values["quiet"] else Progress.on_stderr() as progress:
        progress.start("exporting", len(dataset) if values["split"] is None else None)
        done = export_dataset(
            dataset,
            dst,
            values["format_name"],
            columns=values["columns"],
            split=values["split"],
            storage=values["storage"],
            options=options,
            progress=progress.advance,
        )
    _print(done, values["as_json"])


def _print(done: Exported, as_json: bool) -> None:
    from dataclasses import asdict

    from tokenshard.readable import readable_bytes

    if as_json:
        print_json(asdict(done))
        return
    rows = [
        ("format", done.format),
        ("destination", done.destination),
        ("samples", f"{done.num_samples:,} ({', '.join(f'{name}: {n:,}' for name, n in done.splits.items())})"),
        ("files", f"{done.files:,} ({readable_bytes(done.bytes)})"),
    ]
    rows += [("left out", f"{', '.join(done.left_out)} (no place in this format)")] if done.left_out else []
    print_table(rows)
