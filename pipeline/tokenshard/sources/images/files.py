"""Which files a path stands for: one file, a folder, or those that a glob or brace pattern matches.

Names are relative to one root, so that the same files on disk and on S3 get the same names in the same order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fsspec.utils import glob_translate

from tokenshard.errors import SpecError
from tokenshard.store import Entry, Store

_SPECIAL = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Files:
    """Files below the root of ``store``."""

    store: Store
    what: str
    """file | folder | pattern"""
    names: tuple[str, ...] = ()
    """relative names (file) or patterns; empty for a folder"""

    def list(self, skipped: Callable[[str, str], None] = lambda name, reason: None) -> Iterator[Entry]:
        """The files, sorted by the bytes of their names. ``skipped`` as in :meth:`Store.list`.

        Raises SpecError when a file that was asked for by name is missing.
        """
        if any(_SPECIAL.search(name) for name in self.names) and self.what == "pattern":
            wanted = [re.compile(glob_translate(name)) for name in self.names]

            def matches(name: str) -> bool:
                return any(pattern.match(name) for pattern in wanted)

            found = self.store.list(skipped=lambda name, reason: skipped(name, reason) if matches(name) else None)
            yield from (entry for entry in found if matches(entry.name))
        elif self.names:
            for name in self.names:
                yield Entry(name, self._size(name))
        else:
            yield from self.store.list(skipped=skipped)

    def _size(self, name: str) -> int:
        try:
            return self.store.size(name)
        except FileNotFoundError as error:
            raise SpecError(f"{self.store.url(name)}: no such file; check the path") from error


def find_files(path: str, options: Mapping[str, Any] | None = None, what: str | None = None) -> Files:
    """Files that ``path`` stands for. ``what``: given where it is known, saves looking.

    Raises SpecError when there is nothing at that path.
    """
    plain = path.removeprefix("file://")
    local = "://" not in plain
    path = os.path.expanduser(plain) if local else path
    if what is None and local and os.path.exists(path):
        what = "folder" if os.path.isdir(path) else "file"
        if what == "file" and not os.path.isfile(path):
            raise SpecError(f"{path}: neither a regular file nor a folder; copy its content to a file")
    if what == "pattern" or (what is None and _SPECIAL.search(path)):
        return _pattern(path, options)
    folder, _, name = path.rpartition("/")
    parent = Store(folder or ("/" if path.startswith("/") else "."), options) if local or "://" in folder else None
    if what is None and parent is not None and name and not local:
        what = "file" if parent.exists(name) else None
    if what == "file" and parent is not None:
        return Files(parent, "file", (name,))
    store = Store(path, options)
    if what is None and not store.is_dir():
        raise SpecError(f"{path}: no such file or folder; check the path")
    return Files(store, "folder")


def _pattern(path: str, options: Mapping[str, Any] | None) -> Files:
    special = _SPECIAL.search(path)
    folder = path[: special.start() if special else None].rpartition("/")[0]
    start = len(folder) + 1 if folder or path.startswith("/") else 0
    names = sorted(set(expand_braces(path[start:])), key=os.fsencode)
    return Files(Store(folder or ("/" if start else "."), options), "pattern", tuple(names))


def expand_braces(pattern: str) -> list[str]:
    """All texts that ``{a,b}`` and ``{000..012}`` (zero-padded as written) in a pattern stand for."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    span = _RANGE.fullmatch(found[1])
    if span is None:
        choices = found[1].split(",")
    else:
        low, high = int(span[1]), int(span[2])
        choices = [str(number).zfill(len(span[1])) for number in range(low, high + 1)]
    return [
        pattern[: found.start()] + choice + rest for choice in choices for rest in expand_braces(pattern[found.end() :])
    ]
