"""Local files that appear under their name whole or not at all: written and synced beside, then renamed or linked."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

Content = bytes | Path
"""What a put takes: the bytes themselves, or a local file that holds them."""


def replace(path: str, content: Content, folder: str) -> None:
    """Write a file by way of a temporary one in ``folder``, which is on the same disk."""
    with _written(path, content, folder) as temporary:
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path))


def create(path: str, content: Content, folder: str) -> None:
    """The same for a file that must not exist. Raises FileExistsError; of several writers exactly one does not."""
    if os.path.exists(path):
        raise FileExistsError(errno.EEXIST, "exists", path)
    with _written(path, content, folder) as temporary:
        os.link(temporary, path)
        _sync_folder(os.path.dirname(path))


def remove_files(folder: str) -> int:
    """Remove the files of a folder, and the folder where nothing else has come into it; files removed."""
    names = os.listdir(folder)
    for name in names:
        Path(folder, name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another writer has begun a file there
        os.rmdir(folder)
    return len(names)


@contextlib.contextmanager
def _written(path: str, content: Content, folder: str) -> Iterator[str]:
    """A synced temporary file with the content, which is gone afterwards."""
    os.makedirs(folder, exist_ok=True)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(folder, uuid.uuid4().hex)
    try:
        with open(temporary, "xb") as target:
            if isinstance(content, Path):
                with open(content, "rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
            else:
                target.write(content)
            target.flush()
            os.fsync(target.fileno())
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
