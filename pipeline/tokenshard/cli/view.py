"""`tokenshard view`: a dataset in the browser."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from tokenshard.cli.options import storage_option
from tokenshard.readable import counted


@click.command()
@click.argument("out")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=7878, show_default=True, help="0: any that is free.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option("--version", type=click.IntRange(1), help="Version of OUT. [default: the newest]")
@click.option("--originals", is_flag=True, help="Show originals too, read from where the conversion read them.")
@click.option("--encoder", help="Where the weights of a transformers model are now, for search: hf:FOLDER.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Further name to answer to. Repeatable.")
@storage_option
def view(
    out: str,
    host: str,
    port: int,
    open_browser: bool,
    version: int | None,
    originals: bool,
    encoder: str | None,
    allow_host: tuple[str, ...],
    storage: dict[str, Any],
) -> None:
    """Browse the dataset OUT as a local web page: samples, codes, codebook, storage, rates; maps, clips, search.

    Listens on this machine alone unless --host says otherwise; there is no login. Nothing outside OUT is read, unless
    --originals asks for it, and nothing is written. Stop it with Ctrl-C.

    \b
    Example:
      tokenshard view tokens/ --open
      tokenshard view s3://bucket/tokens/ --port 0
    """
    from tokenshard.errors import SpecError, TokenshardError
    from tokenshard.shards.dataset import open_dataset

    try:
        from tokenshard.viewer.server import Viewer
    except ImportError as error:
        missing = "the viewer needs Starlette and uvicorn; install them with: pip install 'tokenshard[view]'"
        raise SpecError(missing) from error
    from tokenshard.viewer.opened import Opened, Options

    def opened() -> Opened:
        return Opened(open_dataset(out, storage, version), Options(originals, encoder))

    found = None
    try:
        found = opened()
        click.echo(f"{out}: {counted(len(found.dataset), 'sample')}")
    except TokenshardError as error:  # the page says so too, and shows the dataset once it is whole
        click.echo(f"tokenshard: {error}", err=True)
    viewer = Viewer(lambda: found or opened(), host, port, allow_host)
    click.echo(f"open {viewer.url}   (Ctrl-C stops)")
    if open_browser:
        click.launch(viewer.url)
    with suppress(KeyboardInterrupt):  # uvicorn has let answers end, and raises it again
        viewer.run()
