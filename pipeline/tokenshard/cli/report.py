"""`tokenshard report`: what a dataset costs and keeps, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenshard.cli.options import figure, json_option, print_columns, print_json, print_table, storage_option


def _file(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and (value.endswith("/") or not value or Path(value).is_dir()):
        raise click.BadParameter(f"{value!r} is a folder; give the name of a file, e.g. report.html")
    return value


@click.command()
@click.argument("out")
@click.option(
    "--html", "page", metavar="FILE", callback=_file, help="Write one HTML file, or object, that needs nothing else."
)
@click.option("--samples", default=8, show_default=True, type=click.IntRange(0, 64), help="Samples to draw.")
@storage_option
@json_option
def report(out: str, page: str | None, samples: int, storage: dict[str, Any], as_json: bool) -> None:
    """Say what a dataset costs and keeps: sizes, entropies, use of codes, samples, rejects, throughput, provenance.

    Large datasets are sampled, and the report says so; `stats` measures all of one.

    \b
    Example:
      tokenshard report tokens/ --html report.html
      tokenshard report s3://bucket/tokens --json
    """
    from tokenshard.report.summary.figures import summarize
    from tokenshard.shards.dataset import open_dataset

    summary = summarize(open_dataset(out, storage), samples)
    if page is not None:
        from tokenshard.report.summary.page import report_page
        from tokenshard.store import Store

        folder, slash, name = page.rpartition("/")
        text = report_page(summary).encode()
        Store(folder + slash if slash else ".", storage).put(name, text)
        click.echo(f"wrote {page} ({len(text):,} bytes)", err=as_json)
    if as_json:
        print_json(summary.figures)
    elif page is None:
        _print(summary.figures)


def _print(figures: dict[str, Any]) -> None:
    from tokenshard.readable import readable_bytes, readable_seconds
    from tokenshard.report.summary.page import counted, size_rows, times

    dataset, sizes, codes, found = (figures[name] for name in ("dataset", "sizes", "codes", "provenance"))
    print_table(
        [
            ("dataset", f"{dataset['location']} (version {dataset['version']}, {dataset['kind']})"),
            ("samples", f"{dataset['num_samples']:,} in {counted(dataset['num_shards'], 'shard')}"),
            ("tokens", f"{dataset['num_tokens']:,}; {codes['bits_per_token']:.3f} bits each"),
            ("tokenizer", f"{found['tokenizer']['kind']} {found['tokenizer']['fingerprint']}"),
            ("fingerprint", dataset["fingerprint"]),
        ]
    )
    tokens = sizes["token_bytes"]
    click.echo()
    rows = [(name, readable_bytes(size), times(size, tokens)) for name, size in size_rows(sizes)]
    print_columns(("kept as", "bytes", "of the tokens"), rows)
    click.echo()
    parts = sorted(sizes["parts"].items(), key=lambda part: -part[1])
    lines = [(name, readable_bytes(size), f"{size / max(1, tokens):.1%}") for name, size in parts]
    print_columns(("inside the shards", "bytes", "share"), lines)
    click.echo()
    heads = ("level", "codec", "codes", "used", "perplexity", "log2", "order 0", "bits/id")
    levels = [
        (
            level["column"], level["codec"], f"{level['alphabet']:,}", f"{level['codes_used']:,}",
            f"{level['perplexity']:,.1f}", f"{level['log2_alphabet']:.2f}", f"{level['order0_entropy']:.3f}",
            f"{level['bits_per_token']:.3f}",
        )
        for level in codes["levels"]
    ]  # fmt: skip
    print_columns(heads, levels, texts=2)
    _print_of_kind(figures)
    if figures["samples"]:
        click.echo()
        print_columns(("samples",), [(sample["text"],) for sample in figures["samples"]])
    click.echo()
    if reasons := figures["rejects"]["reasons"]:
        columns = ("rejected at", "error", "example", "inputs")
        print_columns(columns, [(r["stage"], r["error"], r["example"], f"{r['count']:,}") for r in reasons], texts=3)
    else:
        click.echo("no rejected inputs")
    for job in figures["throughput"]:
        took = f"{job['inputs']:,} inputs in {readable_seconds(job['seconds'])}"
        click.echo(f"version {job['version']}: {took}, {job['inputs_per_second']:,.0f} a second while converting")
    for note in figures["notes"]:
        click.echo(f"note: {note}")


def _print_of_kind(figures: dict[str, Any]) -> None:
    """What only datasets of grids, or of pages, have."""
    for title in ("grids", "documents"):
        values = {name: value for name, value in (figures[title] or {}).items() if not isinstance(value, list)}
        if values:
            click.echo()
            print_table([(name.replace("_", " "), figure(value)) for name, value in values.items()])
