"""A training set as it lies on disk: which files count, and how many images fit into a budget."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stored:
    """A training set of the first ``images`` images in a folder; ``counted`` are bytes of files by what they hold."""

    folder: Path
    setting: str
    images: int
    counted: dict[str, int]
    apart: dict[str, int] = field(default_factory=dict)
    """bytes that do not grow with the data and are not needed to train"""
    fixed: tuple[str, ...] = ()
    """names of what is counted and does not grow with the data"""

    @property
    def bytes(self) -> int:
        return sum(self.counted.values())

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder), "bytes": self.bytes}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Stored:
        """The reverse of :meth:`json`."""
        kept = {name: value for name, value in fields.items() if name != "bytes"}
        return cls(**kept | {"folder": Path(fields["folder"]), "fixed": tuple(fields["fixed"])})


def size_of(*paths: Path) -> int:
    """Bytes of files, and of all files below folders."""
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())


def fitted(store: Callable[[int], Stored], most: int, budget: float, least: int) -> Stored | None:
    """As many images as the budget holds; None where these are fewer than ``least``."""
    count = most
    while count >= least:
        stored = store(count)
        if stored.bytes <= budget:
            return stored
        fixed = sum(stored.counted[name] for name in stored.fixed)
        if fixed >= budget:
            return None
        count = min(count - 1, int(0.99 * count * (budget - fixed) / (stored.bytes - fixed)))
    return None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Of the processes that would make ``path``, one at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
