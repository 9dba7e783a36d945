"""Options that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
WIDEST = 100_000
"""Characters of a line where no terminal limits it."""


def _storage(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r}: expected NAME=VALUE, e.g. endpoint_url=http://localhost:9000")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def storage_option(command: F) -> F:
    """`--storage NAME=VALUE`, repeatable: fsspec options for remote files."""
    return click.option(
        "--storage",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_storage,
        help="Option for remote storage, e.g. endpoint_url=http://localhost:9000 (S3). Repeatable.",
    )(command)


def encoder_option(command: F) -> F:
    """`--encoder NAME`: what a tokenizer was trained around; the only way to have its code imported."""
    return click.option(
        "--encoder",
        metavar="NAME",
        help="Encoder of a tokenizer trained around one: MODULE:FUNCTION, or a transformers folder. Its code is run.",
    )(command)


class _CodecName(click.Choice[str]):
    """One of the names, or a codec that an installed package adds. Packages are only asked for other names."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from tokenshard.extensions import CODECS, extensions

        if value in self.choices:
            return value
        return click.Choice([*self.choices, *extensions(CODECS)]).convert(value, param, ctx)


def codec_option(*names: str, measured: str) -> Callable[[F], F]:
    """`--codec NAME`: one of ``names``, or of a package; ``measured`` says what `auto` does."""
    return click.option(
        "--codec",
        type=_CodecName(["auto", *names]),
        default="auto",
        show_default=True,
        help=f"auto: {measured}. Or a codec of an installed extension.",
    )


def json_option(command: F) -> F:
    """`--json`: results for machines on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def print_table(rows: Sequence[tuple[str, object]]) -> None:
    """Two aligned columns: names and values."""
    print_columns((), rows, texts=2)


def print_columns(heads: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> None:
    """A table of which all columns but the first ``texts`` hold figures.

    A terminal has it within its width, in folded cells; a pipe or a file as wide as it is, without colour.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tokenshard.readable import printable

    terminal = sys.stdout.isatty()
    grid = Table(box=None, show_header=bool(heads), header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    lines = [[printable(cell) for cell in row] for row in rows]
    for place in range(len(heads) or len(lines[0])):
        side: Literal["left", "right"] = "left" if place < texts else "right"
        grid.add_column(heads[place] if heads else "", justify=side, overflow="fold", no_wrap=side == "right")
    for line in lines:
        grid.add_row(*map(Text, line))
    console = Console(highlight=False, width=None if terminal else WIDEST)
    with console.capture() as shown:
        console.print(grid)
    click.echo("\n".join(line.rstrip() for line in shown.get().splitlines()))


def figure(value: object) -> str:
    """A value of a table: four digits of a float, thousands apart."""
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
