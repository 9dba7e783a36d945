"""`tokenshard info`, `stats`, `verify`, `show` and `clean`: looking at a dataset."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.options import figure, json_option, print_columns, print_json, print_table, storage_option
from tokenshard.readable import counted


@click.command()
@click.argument("out")
@storage_option
@json_option
def info(out: str, storage: dict[str, Any], as_json: bool) -> None:
    """Say what is in a dataset. Reads the manifest only.

    \b
    Example:
      tokenshard info tokens/
    """
    from tokenshard.readable import readable_bytes
    from tokenshard.shards.manifest import read_manifest
    from tokenshard.shards.stats import headline, stored_levels
    from tokenshard.store import Store

    manifest = read_manifest(Store(out, storage))
    totals = manifest.totals
    facts: dict[str, Any] = {
        **headline(manifest),
        "bytes": totals.token_bytes,
        "raw_bytes": totals.raw_bytes,
        "grid": list(manifest.code.grid),
        "alphabets": [level.alphabet for level in manifest.code.levels],
        "codecs": [column.codec for column in manifest.code.columns],
        "levels": stored_levels(manifest),
        "model_bytes": sum(manifest.models.values()),
        "footer_bytes": sum(shard.footer.length for shard in manifest.shards),
        "tokenizer": manifest.tokenizer.model_dump(),
        "columns": [column.model_dump(exclude_none=True) for column in manifest.columns],
        "splits": manifest.splits,
        "preprocess": manifest.preprocess,
        "source": manifest.source,
    }
    if as_json:
        print_json(facts)
        return
    deleted = f"; {facts['num_deleted']:,} deleted" if facts["num_deleted"] else ""
    grid = " x ".join("varies" if dim is None else str(dim) for dim in manifest.code.grid)
    alphabets = ", ".join(str(level.alphabet) for level in manifest.code.levels)
    codecs = ", ".join(dict.fromkeys(facts["codecs"]))
    shards = counted(len(manifest.shards), "shard")
    rows = [
        ("dataset", f"{out} (version {manifest.version}, {manifest.kind})"),
        ("samples", f"{facts['num_samples']:,} in {shards}; {counted(totals.rejects, 'reject')}{deleted}"),
        ("tokens", f"{totals.ids:,}; grid {grid}; alphabet {alphabets}; codec {codecs}"),
        ("bytes", f"{readable_bytes(totals.token_bytes)} from {readable_bytes(totals.raw_bytes)} raw"),
        ("", f"codec models {readable_bytes(facts['model_bytes'])}, footers {readable_bytes(facts['footer_bytes'])}"),
        ("tokenizer", f"{manifest.tokenizer.fingerprint} ({manifest.tokenizer.numerics})"),
        ("columns", ", ".join(f"{c.name}: {c.type}" for c in manifest.columns)),
    ]
    rows += [("splits", ", ".join(f"{k}: {v:,}" for k, v in manifest.splits.items()))] if manifest.splits else []
    rows += [("fingerprint", manifest.fingerprint)]
    print_table(rows)
    _print_levels(facts["levels"])


@click.command()
@click.argument("out")
@storage_option
@json_option
def stats(out: str, storage: dict[str, Any], as_json: bool) -> None:
    """Measure a dataset's codes. Decodes all of it. Of grids also bits a cell, bytes by layer, and the largest error.

    \b
    Example:
      tokenshard stats tokens/
    """
    from tokenshard.shards.dataset import open_dataset
    from tokenshard.shards.stats import dataset_stats

    dataset = open_dataset(out, storage)
    found = dataset_stats(dataset)
    if dataset.manifest.kind == "grid":
        from tokenshard.grids.stats import grid_stats

        found |= grid_stats(dataset)
    if as_json:
        print_json(found)
        return
    rows = [(name, figure(value)) for name, value in found.items() if not isinstance(value, list | dict)]
    rows += [(f"{name} bytes", figure(size)) for name, size in found.get("layer_bytes", {}).items()]
    print_table(rows)
    _print_levels(found["levels"])
    for warning in found.get("warnings", ()):
        click.echo(f"warning: {warning}")


LEVEL_COLUMNS = {
    "codec": "codec",
    "alphabet": "alphabet",
    "codes_used": "used",
    "log2_alphabet": "log2",
    "order0_entropy": "order 0",
    "context_bits": "context",
    "bits_per_token": "bits/id",
    "bits_per_token_in_all": "in all",
    "stream_bytes": "stream bytes",
    "framing_bytes": "framing",
    "length_bytes": "lengths",
    "model_bytes": "model",
}
"""Key of a level's figures -> head of its column."""


def _print_levels(levels: list[dict[str, Any]]) -> None:
    """A table with one line a level."""
    names = [name for name in LEVEL_COLUMNS if name in levels[0]]
    lines = []
    for number, level in enumerate(levels):
        lines.append([str(number), *("-" if level[name] is None else figure(level[name]) for name in names)])
    print_columns(["level", *(LEVEL_COLUMNS[name] for name in names)], lines, texts=0)


@click.command()
@click.argument("out")
@click.option("--deep", is_flag=True, help="Decode every sample too.")
@click.option("--repair", is_flag=True, help="Commit a new version in which damage is undone, filled, or rejects.")
@click.option("--bound", is_flag=True, help="Of grids: decode all cells and hold them against the source.")
@click.option("--source", help="Where the source of --bound is now. [default: where the dataset says it was]")
@storage_option
@json_option
def verify(
    out: str, deep: bool, repair: bool, bound: bool, source: str | None, storage: dict[str, Any], as_json: bool
) -> int:
    """Check a dataset against its manifest and checksums. Exit code 1 if anything is wrong.

    --repair leaves damaged files alone and commits a new version that has others in their place. Wrong bytes are put
    right where checksums tell which; lost ids are filled from their neighbours; samples of which too little is left
    become rejects. What is printed last is the check of the new version.

    \b
    Example:
      tokenshard verify tokens/ --deep
      tokenshard verify tokens/ --repair
      tokenshard verify depths/ --bound --source GEBCO_2024.nc
    """
    from dataclasses import asdict

    from tokenshard.shards.verify import verify as verify_dataset
    from tokenshard.store import Store

    done = None
    if repair:
        from tokenshard.engine.repair import repair as repair_dataset

        done = repair_dataset(Store(out, storage))
    report = verify_dataset(Store(out, storage), deep=deep)
    held = _held_against_source(out, source, storage) if bound and report.ok else None
    if as_json:
        beside = {} if held is None else {"bound": asdict(held) | {"ok": held.ok}}
        print_json(asdict(report) | beside | ({} if done is None else {"repair": asdict(done)}))
        return 0 if report.ok and (held is None or held.ok) else 1
    if done is not None:
        for line in done.lines:
            click.echo(f"repair: {line}")
        click.echo(done.summary())
    for error in report.errors:
        click.echo(f"error: {error}")
    for note in report.notes:
        click.echo(f"note: {note}")
    samples, shards = counted(report.samples, "sample"), counted(report.shards, "shard")
    checked = f"{samples} in {shards}, {counted(report.rejects, 'reject')}"
    depth = "every stream decoded" if deep else "checksums and structure; --deep decodes every stream too"
    click.echo(f"{out}: {'ok' if report.ok else counted(len(report.errors), 'error')} ({checked}; {depth})")
    if held is not None:
        for error in held.errors:
            click.echo(f"error: {error}")
        share = f" ({held.max_share:.4g} of what is allowed)" if held.max_error else ""
        click.echo(f"bound {held.bound}: largest error {held.max_error:g}{share} in {held.cells:,} cells, recomputed")
    return 0 if report.ok and (held is None or held.ok) else 1


def _held_against_source(out: str, source: str | None, storage: dict[str, Any]) -> Any:
    from tokenshard.grids.check import check_bounds
    from tokenshard.grids.dataset import GridDataset
    from tokenshard.shards.dataset import open_dataset

    return check_bounds(GridDataset(open_dataset(out, storage)), source, storage)


@click.command()
@click.argument("out")
@click.argument("keys", nargs=-1)
@click.option(
    "--out", "picture", default="samples.png", show_default=True, type=click.Path(dir_okay=False), help="PNG to write."
)
@click.option(
    "--count", default=8, show_default=True, type=click.IntRange(1, 64), help="Samples to show where no KEY is given."
)
@click.option("--files", help="Folder: write the files that ids of a canonical tokenizer are, instead of a picture.")
@storage_option
@json_option
def show(
    out: str,
    keys: tuple[str, ...],
    picture: str,
    count: int,
    files: str | None,
    storage: dict[str, Any],
    as_json: bool,
) -> None:
    """Draw samples as a picture: original (where the source is at hand) beside the reconstruction.

    Of pages: their text, and the attention that each patch received.

    \b
    Example:
      tokenshard show tokens/ cat/001.jpg dog/007.jpg --out grid.png
      tokenshard show jpegs/ cat/001.jpg --files exported/
    """
    from tokenshard.report.samples import draw_samples, write_files
    from tokenshard.shards.dataset import open_dataset

    dataset = open_dataset(out, storage)
    if files is not None:
        shown, wrote = write_files(dataset, keys, count, files), files
    else:
        shown, wrote = draw_samples(dataset, keys, count, picture), picture
    if as_json:
        print_json({"wrote": wrote, "samples": shown})
        return
    for line in shown:
        click.echo(line)
    if files is None:
        click.echo(f"wrote {picture}")


@click.command()
@click.argument("out")
@click.option(
    "--journal", is_flag=True, help="Also remove _job/ (plans, receipts): a later --append or retry still works."
)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@storage_option
@json_option
def clean(out: str, journal: bool, yes: bool, storage: dict[str, Any], as_json: bool) -> None:
    """Remove leftovers: temporary files of killed writers, and files no version of the dataset lists.

    Do not run it while a job writes to OUT.

    \b
    Example:
      tokenshard clean tokens/
    """
    from tokenshard.engine.clean import leftovers
    from tokenshard.store import Store

    output = Store(out, storage)
    names = leftovers(output, journal)
    if names and not yes:
        click.confirm(f"remove {counted(len(names), 'file')} (e.g. {names[0]})?", abort=True, err=True)
    for name in names:
        output.delete(name)
    removed = len(names) + output.clean_temporary()
    if as_json:
        print_json({"removed": removed, "files": names})
    else:
        click.echo(f"removed {counted(removed, 'file')}")
