"""`tokenshard delete` and `tokenshard compact`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from tokenshard.cli.options import json_option, print_json, storage_option
from tokenshard.readable import counted


@click.command()
@click.argument("out")
@click.argument("keys", nargs=-1)
@click.option("--where", help="All samples for which this holds, e.g. \"document == 'a.pdf'\".")
@storage_option
@json_option
def delete(out: str, keys: tuple[str, ...], where: str | None, storage: dict[str, Any], as_json: bool) -> None:
    """Delete samples of OUT: in a new version, which no reader finds them in. `tokenshard compact` frees their bytes.

    \b
    Example:
      tokenshard delete pages/ a.pdf#1 a.pdf#2
      tokenshard delete pages/ --where "document == 'a.pdf'"
    """
    from tokenshard.engine.delete import delete as delete_samples
    from tokenshard.store import Store

    if not keys and where is None:
        raise click.UsageError("say what to delete: keys, or --where")
    done = delete_samples(Store(out, storage), keys, where)
    if as_json:
        print_json(asdict(done))
    elif done.version is None:
        click.echo("no sample matches; nothing was deleted")
    else:
        click.echo(f"version {done.version}: {counted(done.samples, 'sample')} deleted")


@click.command()
@click.argument("out")
@click.option(
    "--drop-history", is_flag=True, help="Then remove all earlier versions, and the files that only they list."
)
@storage_option
@json_option
def compact(out: str, drop_history: bool, storage: dict[str, Any], as_json: bool) -> None:
    """Write shards without the rows that were deleted. All other samples stay as they are.

    \b
    Example:
      tokenshard compact pages/ --drop-history
    """
    from tokenshard.engine.delete import compact as compact_shards
    from tokenshard.readable import readable_bytes
    from tokenshard.store import Store

    done = compact_shards(Store(out, storage), drop_history)
    if as_json:
        print_json(asdict(done))
    elif done.version is None:
        click.echo("no row is deleted; nothing to compact")
    else:
        sizes = f"{readable_bytes(done.bytes_before)} became {readable_bytes(done.bytes_after)}"
        click.echo(f"version {done.version}: {done.samples:,} deleted rows removed, {sizes}")
