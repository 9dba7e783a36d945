"""Temporary folders; those of processes that were killed are removed by the next process that makes one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_PREFIX, _LOCK = "tokenshard-", ".held"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder where the system keeps temporary files, removed with all that is in it at the end.

    A file beside it is locked as long as this process lives, by which others know what is left over.
    """
    _remove_left_over(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, open(f"{name}/{_LOCK}-new", "wb") as held:
        with suppress(OSError):  # of file systems that cannot lock: what is left there stays
            fcntl.flock(held, fcntl.LOCK_EX)
            os.rename(held.name, f"{name}/{_LOCK}")  # nobody sees it unlocked
        files = Path(name, "files")
        files.mkdir()
        yield files


@cache
def _remove_left_over(parent: Path) -> None:
    """Once a process: folders whose lock nobody holds."""
    for file in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError), open(file, "rb") as held:  # held, another's, or gone by now
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(file.parent, ignore_errors=True)
