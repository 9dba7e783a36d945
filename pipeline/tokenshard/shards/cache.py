"""A folder that keeps what was read from a remote dataset, up to a limit, for all processes of a machine.

One file a byte range (a row group, a footer), with its checksum. Files are read as a whole, before they are used, and
come by rename: whoever deletes one takes it from nobody. Locks are held only while a file is published or others are
deleted for it, and end with the process that holds them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from tokenshard.errors import SpecError, StoreError
from tokenshard.store import Store

SUFFIX = ".range"
TEMPORARY = ".part"
STALE_SECONDS = 600
"""Age at which a file that is being written belongs to a process that was killed."""
LEAST = 4096
"""Bytes of a range below which it is not kept."""
FILL = 0.9
"""Share of the limit that is left full when the cache makes room."""


@dataclass(frozen=True)
class Cache:
    """A folder on a local disk and the bytes it may take (``limit``). Several processes and datasets may share it.

    Raises SpecError for a limit below 1, and StoreError where the folder cannot be made.
    """

    folder: str | os.PathLike[str]
    limit: int = 64 << 30

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise SpecError(f"a cache of {self.limit} bytes holds nothing; give a limit in bytes")
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{os.fspath(self.folder)}: cannot make the cache folder: {error.strerror}") from error

    # -- reading and writing ------------------------------------------------------------------------------------------

    def get(self, key: str, length: int) -> bytes | None:
        """The ``length`` bytes that are kept under a key; None where they are not, or not whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)  # the last use, which decides what goes first
        except OSError:
            return None
        payload = memoryview(data)[:-8]
        if len(payload) != length or xxhash.xxh64_digest(payload) != data[-8:]:
            return None
        return bytes(payload)

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes under a key, in place of what was used longest ago. More than the limit holds are not kept.

        A full disk is a warning, and nothing is kept; for anything else that cannot be written StoreError is raised.
        """
        path = self._path(key)
        temporary = path.with_name(f"{uuid.uuid4().hex}{TEMPORARY}")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(b"".join((data, xxhash.xxh64_digest(data))))
            self._publish(temporary, path, len(data) + 8)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise StoreError(f"{path}: cannot write to the cache: {error.strerror}") from error
            warnings.warn(f"{os.fspath(self.folder)}: the disk of the cache is full; lower its limit", stacklevel=2)
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path, path: Path, size: int) -> None:
        if size > self.limit:
            return
        with self._locked():
            known = path.stat().st_size if path.exists() else 0
            used = self._used() - known + size
            if used > self.limit:
                path.unlink(missing_ok=True)
                used = self._make_room(int(self.limit * FILL), size) + size
            self._usage.write_text(str(used))  # before the file, so that a kill in between leaves it too high
            os.replace(temporary, path)

    # -- room ---------------------------------------------------------------------------------------------------------

    def _make_room(self, limit: int, size: int) -> int:
        """Delete what was used longest ago until ``size`` more bytes fit; bytes that are left."""
        files = []
        for path, stat in self._files():
            if path.suffix == SUFFIX:
                files.append((stat.st_mtime_ns, path, stat.st_size))
            elif path.suffix == TEMPORARY and time.time() - stat.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
        left = sum(bytes_ for _, _, bytes_ in files)
        for _, path, bytes_ in sorted(files):
            if left + size <= max(limit, size):
                break
            path.unlink(missing_ok=True)
            left -= bytes_
        return left

    def _used(self) -> int:
        """Bytes in the folder, as counted by whoever wrote last; counted anew where that is not known."""
        try:
            return int(self._usage.read_text())
        except (OSError, ValueError):
            return sum(stat.st_size for path, stat in self._files() if path.suffix == SUFFIX)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in Path(self.folder).glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(Path(self.folder) / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def _usage(self) -> Path:
        return Path(self.folder) / "usage"

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        return Path(self.folder) / name[:2] / f"{name[2:]}{SUFFIX}"


class CachedStore(Store):
    """A remote store whose byte ranges are kept in a cache. ``version`` tells contents at the same place apart."""

    def __init__(self, store: Store, cache: Cache, version: str) -> None:
        super().__init__(store.root, store.options)
        self.cache, self._version = cache, version

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See :meth:`Store.read`."""
        if length is None or length < LEAST:
            return super().read(name, start, length)
        key = "\n".join((self.root, self._version, name, str(start), str(length)))
        found = self.cache.get(key, length)
        if found is None:
            found = super().read(name, start, length)
            if len(found) == length:
                self.cache.put(key, found)
        return found
