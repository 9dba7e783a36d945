"""`tokenshard demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default="demo")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="ray", show_default=True, help="Where to run.")
def demo(folder: Path, engine: str) -> None:
    """Convert, train and compare on real images that ship with scikit-learn and scikit-image.

    Everything goes below FOLDER. Needs no download and about two minutes.

    \b
    Example:
      tokenshard demo
    """
    from tokenshard.demo import run_demo

    run_demo(folder, engine, click.echo)
