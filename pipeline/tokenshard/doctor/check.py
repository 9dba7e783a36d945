"""One thing that was looked at, and the way checks are run: whatever one of them raises is its own finding."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenshard.errors import TokenshardError
from tokenshard.spec.secrets import is_secret_variable

State = Literal["ok", "note", "failed"]
SHORTEST_SECRET = 4


@dataclass(frozen=True)
class Finding:
    """What a check saw. ``note``: works, but could be better. ``remedy``: what to do; empty where all is well."""

    state: State
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """A named look at something. ``look`` may raise; ``remedy`` is for that case."""

    name: str
    look: Callable[[], Finding]
    remedy: str


@dataclass(frozen=True)
class Result:
    """A finding by name, with the seconds it took."""

    name: str
    state: State
    text: str
    remedy: str
    seconds: float


def run_check(check: Check, secrets: Iterable[str] = ()) -> Result:
    """Look, and leave out of what is said any of the ``secrets`` and those of the environment."""
    started = time.monotonic()
    try:
        found = check.look()
    except Exception as error:  # a broken machine raises anything; the other checks must still run
        said = " ".join(str(error).split())
        kind = "" if isinstance(error, TokenshardError) and said else f"{type(error).__name__}: "
        found = Finding("failed", f"{kind}{said}", check.remedy)
    hidden = [*secrets, *environment_secrets(os.environ)]
    seconds = round(time.monotonic() - started, 3)
    return Result(check.name, found.state, _without(found.text, hidden), _without(found.remedy, hidden), seconds)


def environment_secrets(environment: Mapping[str, str]) -> list[str]:
    """Values of variables that are named like secrets."""
    return [value for name, value in environment.items() if is_secret_variable(name)]


def option_secrets(options: Mapping[str, Any]) -> list[str]:
    """Values of storage options that are named like secrets, at any depth."""
    found = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += option_secrets(value)
        elif name.lower() in {"key", "username"} or is_secret_variable(name):
            found.append(str(value))
    return found


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text
