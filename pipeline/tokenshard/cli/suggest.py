"""What was probably meant: commands and values near to those that do not exist."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

_CHOICE = re.compile(r"'(.*?)' is not one of ")


def with_suggestion(error: click.ClickException) -> click.ClickException:
    """The error, with the nearest command or value in its message where click itself names none."""
    if "Did you mean" in error.message or not isinstance(error, click.UsageError):
        return error
    given, known = "", list[str]()
    if isinstance(error, click.BadParameter) and error.param is not None:
        found = _CHOICE.match(error.message)
        if found is not None and isinstance(error.param.type, click.Choice):
            given, known = found[1], [str(choice) for choice in error.param.type.choices]
    elif found := re.match(r"No such command '(.*?)'", error.message):
        command = error.ctx.command if error.ctx is not None else None
        if isinstance(command, click.Group) and error.ctx is not None:
            given, known = found[1], command.list_commands(error.ctx)
    meant = did_you_mean(given, known)
    return click.UsageError(error.format_message() + meant, error.ctx) if meant else error


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A sentence with the nearest name, after a space; empty where none is near."""
    from difflib import get_close_matches

    near = get_close_matches(given, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
