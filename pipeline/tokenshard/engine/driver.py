"""One driver a job: a lease in the job folder, which its driver renews while it lives, with how far the job is.

`_job/<version>/driver/<term>.json` is created by put-if-absent and rewritten by its holder alone. A term has ended when
its holder says so, when its process is gone (seen on the same machine), or when it was not rewritten for
:data:`EXPIRY` seconds of the clock of whoever wants the next one: clocks of two machines are never compared.

The lease saves work and keeps two users apart. Correctness does not rest on it: whatever a driver commits, the first
writer wins (see :mod:`tokenshard.engine.unit`).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from pydantic import Field, ValidationError

from tokenshard.engine.job_folder import JobFolder
from tokenshard.engine.progress import Progress
from tokenshard.errors import JobError, StoreError
from tokenshard.spec.base import StoredDocument

logger = logging.getLogger("tokenshard.engine")

BEAT = 10.0
"""Seconds between two renewals."""
EXPIRY = 35.0
"""Seconds without a renewal after which a driver on another machine counts as dead."""
LOOK = 1.0
"""Seconds between two looks at a lease of another driver."""


class DriverEntry(StoredDocument):
    """`driver/<term>.json`: who drives the job, and how far it was at the last renewal. Times are UTC, ISO 8601."""

    host: str
    machine: str = Field(description="boot and process namespace: where `pid` means something")
    pid: int
    born: str = Field(description="when the process started, as its machine counts")
    started: str
    beat: int = 0
    at: str = Field(description="time of the last renewal, by the driver's clock")
    phase: str = ""
    done: int = Field(default=0, description="inputs done in this phase")
    total: int | None = None
    rejects: int = 0
    raw_bytes: int = 0
    token_bytes: int = 0
    rate: float = Field(default=0, description="inputs a second")
    ended: str | None = Field(default=None, description="how it ended; none: it runs, or was killed")

    @property
    def name(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def here(self) -> bool:
        """Whether it runs, or ran, where this process can see it."""
        return self.machine == _machine()

    @property
    def gone(self) -> bool:
        """Whether it surely does not run any more."""
        return self.ended is not None or (self.here and _born(self.pid) != self.born)


class Lease:
    """The right to drive a job, renewed on a thread. Use as a context manager around the driver's work."""

    def __init__(self, folder: JobFolder, term: int, entry: DriverEntry, progress: Progress) -> None:
        self._folder, self._term, self._entry, self._progress = folder, term, entry, progress
        self._lost: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="tokenshard-lease", daemon=True)

    @staticmethod
    def take(folder: JobFolder, progress: Progress) -> Lease:
        """Become the driver. Raises JobError where another one lives; one that was killed is waited out."""
        while True:
            term, held = latest_driver(folder)
            if held is not None:
                _wait_for_end(folder, term, held, progress.note)
            entry = _myself()
            if folder.output.put_if_absent(_name(folder, term + 1), _bytes(entry)):
                return Lease(folder, term + 1, entry, progress)

    def check(self) -> None:
        """Raises JobError where another driver took over, because this one was thought dead."""
        if self._lost is not None:
            raise JobError(self._lost)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._lost is None:
            ended = "finished" if error is None else " ".join(str(error).split())[:500] or type(error).__name__
            with suppress(StoreError):  # the store may be what ended the job
                self._write(ended)

    def _renew(self) -> None:
        while not self._over.wait(BEAT):
            try:
                term, held = latest_driver(self._folder)
                if term != self._term:
                    by = f"{held.name} took over" if held is not None else "its files were removed"
                    self._lost = f"{self._folder.output.root}: {by} while this driver was not heard of; stopped"
                    return
                self._write(None)
            except (StoreError, OSError) as error:
                logger.warning("the lease could not be renewed: %s", error)

    def _write(self, ended: str | None) -> None:
        progress = self._progress
        self._entry = self._entry.model_copy(
            update={
                "beat": self._entry.beat + 1,
                "at": _now(),
                "phase": progress.phase,
                "done": progress.done,
                "total": progress.total,
                "rejects": progress.rejects,
                "raw_bytes": progress.raw_bytes,
                "token_bytes": progress.token_bytes,
                "rate": round(progress.rate, 3),
                "ended": ended,
            }
        )
        self._folder.output.put(_name(self._folder, self._term), _bytes(self._entry))


def latest_driver(folder: JobFolder) -> tuple[int, DriverEntry | None]:
    """The last term and its driver; (0, None) where nobody has driven the job yet."""
    terms = [int(entry.name[-13:-5]) for entry in folder.output.list(folder.name("driver"))]
    if not terms:
        return 0, None
    return max(terms), _read(folder, max(terms))


def check_undriven(folder: JobFolder, progress: Progress) -> None:
    """Raises JobError where a driver of the job lives."""
    term, held = latest_driver(folder)
    if held is not None:
        _wait_for_end(folder, term, held, progress.note)


def _wait_for_end(folder: JobFolder, term: int, held: DriverEntry, note: Callable[[str], None]) -> None:
    """Returns when the driver is dead; raises JobError as soon as it is seen to live."""
    root = folder.output.root
    alive = JobError(
        f"{root}: another job writes there ({held.name}, since {held.started}): wait for it or stop it, or choose "
        "another output"
    )
    if held.gone:
        return
    if held.here:
        raise alive
    note(f"{root}: {held.name} had this job; waiting up to {EXPIRY:.0f} s to see whether it still runs")
    until = time.monotonic() + EXPIRY
    while time.monotonic() < until:
        time.sleep(min(LOOK, EXPIRY))
        now = _read(folder, term)
        if now is None or now.ended is not None:
            return
        if now.beat != held.beat:
            raise alive


def _name(folder: JobFolder, term: int) -> str:
    return folder.name(f"driver/{term:08d}.json")


def _read(folder: JobFolder, term: int) -> DriverEntry | None:
    try:
        return DriverEntry.model_validate_json(folder.output.read(_name(folder, term)))
    except (FileNotFoundError, ValidationError):
        return None  # removed meanwhile, or written by another version: nobody who could be waited for


def _bytes(entry: DriverEntry) -> bytes:
    return entry.model_dump_json(indent=1).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _myself() -> DriverEntry:
    now = _now()
    pid = os.getpid()
    return DriverEntry(
        host=socket.gethostname(), machine=_machine(), pid=pid, born=_born(pid) or "", started=now, at=now
    )


def _machine() -> str:
    """What tells machines, their boots, and containers on them apart; random where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"


def _born(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None where there is none, or one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
