"""`tokenshard demo`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from tokenshard.cli.options import json_option, print_json


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default="demo")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="ray", show_default=True, help="Where to run.")
@json_option
def demo(folder: Path, engine: str, as_json: bool) -> None:
    """Convert, train and compare on real images that ship with scikit-learn and scikit-image.

    Everything goes below FOLDER. Needs no download and about two minutes.

    \b
    Example:
      tokenshard demo
    """
    from tokenshard.demo import run_demo

    results = run_demo(folder, engine, partial(click.echo, err=as_json))
    if as_json:
        print_json([asdict(result) for result in results])
