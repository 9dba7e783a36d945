"""Streamed file listings in one order for every file system: by the bytes of the names, as object stores list.

Belongs to :mod:`tokenshard.store`. A folder sorts as its name plus ``/``, so that walking folder by folder yields
exactly the order in which S3 lists the same keys.
"""

from __future__ import annotations

import heapq
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, cast

from tokenshard.errors import StoreError

RUN = 500_000
"""Names of one folder sorted in memory at a time; larger folders are merged from sorted runs on disk."""

Skipped = Callable[[str, str], None]


def local_files(root: str, prefix: str, skipped: Skipped, temporary: str, run: int = RUN) -> Iterator[tuple[str, int]]:
    """(name relative to root, bytes) of all regular files in ``root/prefix`` and below, without ``root/temporary``.

    Raises StoreError if a folder of more than ``run`` names cannot be sorted for want of temporary disk space.
    """
    real_root = os.path.realpath(root)
    folders = [(prefix, _names_or_report(root, prefix, skipped, run))]
    while folders:  # a stack of its own: trees may be deeper than Python's recursion limit
        folder, names = folders[-1]
        encoded = next(names, None)
        if encoded is None:
            folders.pop()
            continue
        name = os.fsdecode(encoded.rstrip(b"/"))
        relative = f"{folder}/{name}" if folder else name
        if encoded.endswith(b"/"):
            if relative != temporary:
                folders.append((relative, _names_or_report(root, relative, skipped, run)))
        elif (size := _regular_size(root, real_root, relative, skipped)) is not None:
            yield relative, size


def _names_or_report(root: str, folder: str, skipped: Skipped, run: int) -> Iterator[bytes]:
    try:
        return _sorted_names(os.path.join(root, folder), run)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        skipped(folder, f"folder cannot be read: {error.strerror}")
    return iter(())


def _sorted_names(path: str, run: int) -> Iterator[bytes]:
    """Names in a folder, folders with ``/`` behind, sorted; in bounded memory."""
    runs: list[BinaryIO] = []
    names: list[bytes] = []
    with os.scandir(path) as entries:
        for entry in entries:
            names.append(os.fsencode(entry.name) + (b"/" if entry.is_dir(follow_symlinks=False) else b""))
            if len(names) >= run:
                runs.append(_spill(names))
                names = []
    return heapq.merge(sorted(names), *(_names_of(spilled) for spilled in runs))


def _spill(names: list[bytes]) -> BinaryIO:
    try:
        run = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed when its last name is read
        for start in range(0, len(names := sorted(names)), 10_000):
            run.write(b"".join(name + b"\0" for name in names[start : start + 10_000]))
        run.seek(0)
    except OSError as error:
        raise StoreError(
            f"{tempfile.gettempdir()}: cannot sort the names of a large folder there: {error.strerror}; "
            "free some space or set TMPDIR to another folder"
        ) from error
    return run


def _names_of(run: BinaryIO) -> Iterator[bytes]:
    rest = b""
    while chunk := run.read(1 << 16):
        *names, rest = (rest + chunk).split(b"\0")
        yield from names
    run.close()


def _regular_size(root: str, real_root: str, name: str, skipped: Skipped) -> int | None:
    path = os.path.join(root, name)
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            target = os.path.realpath(path, strict=True)
            if os.path.commonpath([real_root, target]) != real_root:
                skipped(name, "symbolic link leaves the folder")
                return None
            status = os.stat(target)
            if stat.S_ISDIR(status.st_mode):
                skipped(name, "symbolic link to a folder")
                return None
    except OSError as error:
        skipped(name, f"cannot be read: {error.strerror}")
        return None
    if not stat.S_ISREG(status.st_mode):
        skipped(name, "not a regular file")
        return None
    return status.st_size


def remote_files(filesystem: Any, root: str, prefix: str) -> Iterator[tuple[str, int]]:
    """The same for any fsspec file system, one folder at a time."""
    base = filesystem._strip_protocol(root).rstrip("/")

    def walk(folder: str) -> Iterator[tuple[str, int]]:
        try:
            found: Iterable[dict[str, Any]] = filesystem.ls(f"{base}/{folder}" if folder else base, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return
        items = [(str(item["name"]).rstrip("/").removeprefix(base).lstrip("/"), item) for item in found]
        for name, item in sorted(items, key=lambda pair: (pair[0] + "/" * (pair[1]["type"] == "directory")).encode()):
            if item["type"] == "directory":
                yield from walk(name)
            elif name != folder:
                yield name, int(item["size"] or 0)

    return walk(prefix.strip("/"))
