"""All storage of tokenshard goes through here: local disk, S3, and every other fsspec file system look the same.

A :class:`Store` is the files below one root. It lists as a stream in one fixed order, reads ranges, replaces a file
atomically, and creates a file only if it is absent (first writer wins): the primitive every commit rests on.
Transient failures are retried with jitter a bounded number of times; what remains is a :class:`StoreError`.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import os
import posixpath
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar, cast

from tokenshard import atomic, listing
from tokenshard.atomic import Content
from tokenshard.errors import SpecError, StoreError
from tokenshard.failures import boto_code, explain, is_transient
from tokenshard.ranged import RangedFile
from tokenshard.remote import Hedge, Patience, request

T = TypeVar("T")

ATTEMPTS = 6
FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0
"""Retry bounds: attempts in all, and seconds between them (doubling, full jitter)."""
DEADLINE = 60.0
SLOWEST = 1 << 20
"""Seconds that remote storage has to answer a read, its attempts in all; and one more for so many bytes asked for."""

TEMPORARY = ".tmp"
"""Folder below a local root that holds files being written; never listed, removed by ``clean_temporary``."""

IN_ONE = 1 << 30
"""Bytes below which a file is created on S3 by one request."""
_OURS = {"deadline", "hedge"}
_TAG = "tokenshard-writer"
_S3_DEFAULTS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
        "retries": {"mode": "standard", "total_max_attempts": 2},
    },
}
_memory_lock = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """One listed file: name relative to the root, and its bytes."""

    name: str
    size: int


class Store:
    """The files below ``root`` (a local path, ``s3://bucket/prefix``, ``memory://x``, or any fsspec URL).

    Names are relative to the root with ``/`` as separator. Missing files raise FileNotFoundError, everything else
    StoreError. Instances are picklable and may be used from several threads.

    ``options`` are those of the fsspec file system, and two for remote ones: ``deadline``, the seconds in which a read
    must be answered (:data:`DEADLINE`; writes are bounded by their attempts), and ``hedge``, whether late range reads
    are sent twice.
    """

    def __init__(self, root: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> None:
        text = os.fspath(root)
        self.options = dict(options or {})
        self.protocol = text.split("://", 1)[0] if "://" in text else "file"
        if self.protocol == "file":
            self.root = os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
        else:
            self.root = text.rstrip("/") if not text.endswith("://") else text
        self._filesystem: Any = None
        self._process = 0
        self._configure()

    def _configure(self) -> None:
        deadline = self.options.get("deadline", DEADLINE)
        if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline > 0:
            raise SpecError(f"{self.root}: deadline must be a number of seconds above 0, not {deadline!r}")
        self.deadline = float(deadline)
        self.hedge = Hedge() if self.options.get("hedge") else None

    def with_options(self, **options: Any) -> Self:
        """The same files with other options beside those it has."""
        other = copy.copy(self)
        other.options = {**self.options, **options}
        other._configure()
        return other

    @property
    def is_local(self) -> bool:
        return self.protocol == "file"

    @property
    def _is_s3(self) -> bool:
        return self.protocol in {"s3", "s3a"}

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_filesystem": None, "hedge": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._configure()

    def url(self, name: str = "") -> str:
        """Full path or URL of a name, for messages and for other programs."""
        if not name:
            return self.root
        return os.path.join(self.root, name) if self.is_local else posixpath.join(self.root, name)

    def _path(self, name: str = "") -> str:
        """What the file system calls a name. fsspec's memory would take `::` in a URL for a chain of file systems."""
        url = self.url(name)
        return "/" + url.removeprefix("memory://").lstrip("/") if self.protocol == "memory" else url

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of a file, or of a range of it (shorter than ``length`` where the file ends before)."""
        if length == 0:
            return b""
        patience = self._patience(length)
        return self._retry(name, "read", lambda: self._read_once(name, start, length, patience), patience)

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Fill ``out`` with a range of a file; the bytes read (fewer where the file ends before)."""
        if self.is_local:
            return self._retry(name, "read", lambda: self._read_local(name, start, out))
        data = self.read(name, start, len(out))
        out[: len(data)] = data
        return len(data)

    def _read_local(self, name: str, start: int, out: memoryview) -> int:
        with open(self.url(name), "rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < len(out) and (count := file.readinto(out[done:])):
                done += count
            return done

    def _read_once(self, name: str, start: int, length: int | None, patience: Patience | None) -> bytes:
        if self.is_local:
            with open(self.url(name), "rb") as file:
                file.seek(start)
                return file.read(-1 if length is None else length)
        try:
            if length is None:  # of a size that is not known: as long as bytes come
                return cast(bytes, self.filesystem.cat_file(self._path(name), start=start or None))
            span = {"start": start, "end": start + length}
            return cast(bytes, request(self.filesystem, "cat_file", self._path(name), patience, self.hedge, **span))
        except OSError as error:
            if boto_code(error) in {"InvalidRange", "416"}:
                return b""
            raise

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        """A seekable binary file; remote ones read exactly the ranges asked for (no read-ahead)."""
        if self.is_local:
            return self._retry(name, "open", lambda: open(self.url(name), "rb"))
        size = self.size(name) if size is None else size
        return cast(BinaryIO, RangedFile(size, lambda start, length: self.read(name, start, length)))

    def size(self, name: str) -> int:
        """Bytes of a file; a folder is none."""
        if self.is_local:
            is_file = not os.path.isdir(self.url(name))
            size = self._retry(name, "stat", lambda: os.stat(self.url(name)).st_size)
        else:
            found = self._info(name)
            is_file, size = found["type"] == "file", int(found["size"])
        if not is_file:
            raise FileNotFoundError(errno.ENOENT, "not a file", self.url(name))
        return size

    def exists(self, name: str) -> bool:
        """Whether a file of that name exists."""
        if self.is_local:
            return os.path.isfile(self.url(name))
        try:
            return bool(self._info(name)["type"] == "file")
        except FileNotFoundError:
            return False

    def _info(self, name: str) -> Any:
        patience, path = self._patience(), self._path(name)
        return self._retry(name, "stat", lambda: request(self.filesystem, "info", path, patience), patience)

    def is_dir(self, name: str = "") -> bool:
        """Whether there is a folder (on an object store: any file below that prefix)."""
        if self.is_local:
            return os.path.isdir(self.url(name))
        return next(iter(self.list(name)), None) is not None

    def list(self, prefix: str = "", skipped: Callable[[str, str], None] | None = None) -> Iterator[Entry]:
        """All files in the folder ``prefix`` and below, as a stream sorted by the bytes of their names.

        The order is the same on every file system, and memory does not grow with the number of files. A missing
        folder is empty. Locally, symbolic links to files inside the root count as files; links to folders, links
        leaving the root, and special files (FIFO, socket, device) are never opened: they, and folders that cannot be
        read, are reported to ``skipped(name, reason)``.
        """
        prefix = prefix.strip("/")
        if self.is_local:
            entries = listing.local_files(self.root, prefix, skipped or (lambda name, reason: None), TEMPORARY)
        elif self._is_s3:
            entries = self._list_s3(prefix)
        else:
            entries = listing.remote_files(self.filesystem, self._path(), prefix)
        return (Entry(name, size) for name, size in entries)

    def _list_s3(self, prefix: str) -> Iterator[tuple[str, int]]:
        bucket, _, base = self.root.split("://", 1)[1].partition("/")
        base = f"{base.rstrip('/')}/" if base else ""
        where = f"{base}{prefix}/" if prefix else base

        def page(after: str) -> list[tuple[str, int]]:
            asked = {"Bucket": bucket, "Prefix": where, **({"StartAfter": after} if after else {})}
            patience = self._patience()
            answer = self._retry(
                prefix,
                "list",
                lambda: request(self.filesystem, "call_s3", "list_objects_v2", patience, None, **asked),
                patience,
            )
            return [(item["Key"], int(item["Size"])) for item in answer.get("Contents", [])]

        after = ""
        while items := page(after):
            after = items[-1][0]
            for key, size in items:
                if not key.endswith("/"):  # folder markers some tools create
                    yield key.removeprefix(base), size

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(self, name: str, content: Content) -> None:
        """Write a file atomically: readers see the old content or the new one, never a part."""
        self._retry(name, "write", lambda: self._put_once(name, content))

    def _put_once(self, name: str, content: Content) -> None:
        if self.is_local:
            atomic.replace(self.url(name), content, os.path.join(self.root, TEMPORARY))
        elif isinstance(content, Path):
            self.filesystem.put_file(str(content), self._path(name))
        else:
            self.filesystem.pipe_file(self._path(name), content)

    def put_if_absent(self, name: str, content: Content) -> bool:
        """Create a file unless it exists; True if this call created it. Of several writers exactly one wins.

        Locally a fully written and synced temporary file is linked to its name. On S3 the upload is one request
        (below :data:`IN_ONE`): some stores forget the condition when parts are put together. It carries
        ``If-None-Match: *`` and a tag of this call: clients repeat requests whose response was lost, and the tag says
        whether an existing file is what such a request created. Elsewhere, a file with the same bytes is ours if an
        attempt failed before.
        """
        tag = uuid.uuid4().hex
        failed = False

        def attempt() -> bool:
            nonlocal failed
            try:
                self._create_once(name, content, tag)
                return True
            except Exception as error:
                if not isinstance(error, FileExistsError) and boto_code(error) not in {"PreconditionFailed", "412"}:
                    failed = True
                    raise
                if self._is_s3:
                    return self._tag(name) == tag
                return failed and self._holds(name, content)

        return self._retry(name, "create", attempt)

    def _create_once(self, name: str, content: Content, tag: str) -> None:
        if self.is_local:
            atomic.create(self.url(name), content, os.path.join(self.root, TEMPORARY))
            return
        in_memory = self.protocol == "memory"
        whole = {"chunksize": IN_ONE // 2, "max_concurrency": 1}
        marks: dict[str, Any] = {"Metadata": {_TAG: tag}, **whole} if self._is_s3 else {}
        with _memory_lock if in_memory else contextlib.nullcontext():
            if in_memory and self.filesystem.exists(self._path(name)):
                raise FileExistsError(errno.EEXIST, "exists", name)
            if isinstance(content, Path):
                self.filesystem.put_file(str(content), self._path(name), mode="create", **marks)
            else:
                self.filesystem.pipe_file(self._path(name), content, mode="create", **marks)

    def _tag(self, name: str) -> str | None:
        bucket, key, _ = self.filesystem.split_path(self.url(name))
        found = self.filesystem.call_s3("head_object", Bucket=bucket, Key=key)
        return cast("str | None", found["Metadata"].get(_TAG))

    def _holds(self, name: str, content: Content) -> bool:
        mine = hashlib.sha256(content.read_bytes() if isinstance(content, Path) else content).digest()
        return hashlib.sha256(self.read(name)).digest() == mine

    def delete(self, name: str) -> None:
        """Remove a file; a missing one is no error."""
        try:
            remove = os.unlink if self.is_local else self.filesystem.rm_file
            self._retry(name, "delete", lambda: remove(self._path(name)))
        except FileNotFoundError:
            return

    def clean_temporary(self) -> int:
        """Remove what killed writers left behind (local stores only); files removed."""
        folder = os.path.join(self.root, TEMPORARY)
        if not self.is_local or not os.path.isdir(folder):
            return 0
        return self._retry(TEMPORARY, "remove", lambda: atomic.remove_files(folder))

    # -- the file system below ----------------------------------------------------------------------------------------

    @property
    def filesystem(self) -> Any:
        """The fsspec file system (remote stores)."""
        if self._filesystem is None or self._process != os.getpid():  # clients do not survive a fork
            import fsspec

            options = {**(_S3_DEFAULTS if self._is_s3 else {}), **self.options}
            try:
                filesystem = fsspec.filesystem(
                    self.protocol, **{name: value for name, value in options.items() if name not in _OURS}
                )
            except (ValueError, ImportError) as error:
                raise StoreError(f"{self.root}: cannot open this kind of storage: {error}") from error
            if self._is_s3:
                filesystem.retries = 1  # s3fs's own loop would multiply the time that ours is bounded to
            self._filesystem, self._process = filesystem, os.getpid()
        return self._filesystem

    def _patience(self, length: int | None = 0) -> Patience | None:
        """For a read of so many bytes (None: not known); None where nothing but the attempts bounds it."""
        return None if self.is_local else Patience(self.deadline, None if length is None else length / SLOWEST)

    def _retry(self, name: str, action: str, call: Callable[[], T], patience: Patience | None = None) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except StoreError:
                raise
            except Exception as error:
                lost = boto_code(error) in {"NoSuchBucket", "NoSuchUpload"}
                missing = isinstance(error, FileNotFoundError) and not lost
                if missing and not (self.is_local and action in {"write", "create"}):
                    raise
                transient = not self.is_local and is_transient(error)
                over = patience is not None and patience.left() == 0
                if not transient or over or attempt == ATTEMPTS:
                    allowed = self.deadline if over else None
                    raise StoreError(explain(self.url(name), action, error, attempt, allowed), transient) from error
            delay = random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2**attempt))
            time.sleep(delay if patience is None else min(delay, patience.left()))
        raise AssertionError("unreachable")
