"""Compiled loops: numba functions that free the interpreter lock, kept on disk where some folder can be written.

Without such a folder numba itself refuses to define them (a package installed by root, run by a user without a home).
They work then all the same: each process compiles those it calls, and one warning says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numba

logger = logging.getLogger("tokenshard")
F = TypeVar("F", bound=Callable[..., Any])
REMEDY = "set NUMBA_CACHE_DIR to a folder that only you can write"


def kernel(**options: Any) -> Callable[[F], F]:
    """A decorator: compile with these options of `numba.njit`, at the first call with arguments of each type."""

    def decorate(function: F) -> F:
        compiled = numba.njit(nogil=True, **options)(function)
        try:
            compiled.enable_caching()
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            _warn()
        found: F = compiled
        return found

    return decorate


def cache_folder(function: Any) -> str | None:
    """Where the machine code of a kernel is kept; None where it is not."""
    folder = function.stats.cache_path
    return None if folder is None else str(folder)


@cache
def _warn() -> None:
    """Once in a process."""
    logger.warning(
        "compiled loops cannot be kept: neither the folder of the package nor the cache folder of the user can be "
        "written. They work, but each process compiles them again, which takes seconds to a minute; %s",
        REMEDY,
    )
