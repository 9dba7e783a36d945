"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


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


def json_option(command: F) -> F:
    """`--json`: results for machines on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def print_table(rows: list[tuple[str, str]]) -> None:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
