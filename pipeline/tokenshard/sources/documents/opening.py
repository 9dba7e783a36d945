"""Opening PDF files at planning, in processes of their own: what hangs or crashes PDFium there ends as a reject.

Units need nothing like that: their workers are processes, and the engine finds the input that kills one. Planning runs
in the process of the job. A process answers one file after the other, over its pipes: a line of JSON and the bytes of a
file for a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from queue import LifoQueue
from threading import Timer
from typing import BinaryIO, cast

from tokenshard.errors import InputError
from tokenshard.sources.documents.pdfium import Pdf, PdfDamaged, PdfEncrypted, PdfUnsupported

_INFORMATION = ("Author", "Subject", "Keywords", "Creator", "Producer", "CreationDate", "ModDate")
_ERRORS = {error.__name__: error for error in (PdfDamaged, PdfEncrypted, PdfUnsupported)}


class PdfCrashes(InputError):
    """Opening the file kills the process that does it."""


class PdfHangs(InputError):
    """Opening the file takes longer than the job allows."""


@dataclass(frozen=True)
class Opened:
    """What planning asks of a PDF file."""

    pages: int
    title: str | None
    metadata: str | None
    """JSON: author, dates and the like"""


def look_into(data: bytes, password: str | None) -> Opened:
    """Open a file in this process. Raises the errors of :class:`Pdf`."""
    pdf = Pdf(data, password)
    try:
        found = {name.lower(): pdf.metadata(name) for name in _INFORMATION}
        said = {name: value for name, value in found.items() if value is not None}
        return Opened(len(pdf), pdf.metadata("Title"), json.dumps(said, ensure_ascii=False) if said else None)
    finally:
        pdf.close()


class Opener:
    """A process that opens files, started for the first and again after it died."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self.process: subprocess.Popen[bytes] | None = None

    def open(self, data: bytes, password: str | None) -> Opened:
        """Raises InputError: one of the errors of :class:`Pdf`, PdfCrashes or PdfHangs."""
        if self.process is None:
            self.process = _started()
        timer = Timer(self._max_seconds, self.process.kill)
        timer.start()
        try:
            answer = _asked(self.process, data, password)
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
        if answer is None:
            self.close()
            if timed_out:
                raise PdfHangs(f"opening the file takes more than max_seconds ({self._max_seconds:g})")
            raise PdfCrashes("opening the file crashes PDFium")
        if "error" in answer:
            raise _ERRORS.get(str(answer["error"]), InputError)(str(answer["message"]))
        return Opened(**answer)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    cast(BinaryIO, pipe).close()
            self.process = None


class Openers:
    """Some processes that threads take turns with."""

    def __init__(self, count: int, max_seconds: float) -> None:
        self._openers = [Opener(max_seconds) for _ in range(count)]
        self._free: LifoQueue[Opener] = LifoQueue()
        for opener in self._openers:
            self._free.put(opener)

    def open(self, data: bytes, password: str | None) -> Opened:
        """As :meth:`Opener.open`, when one is free."""
        opener = self._free.get()
        try:
            return opener.open(data, password)
        finally:
            self._free.put(opener)

    def close(self) -> None:
        for opener in self._openers:
            opener.close()


@contextmanager
def openers(count: int, max_seconds: float) -> Iterator[Openers]:
    """``count`` processes, ended with the block."""
    found = Openers(count, max_seconds)
    try:
        yield found
    finally:
        found.close()


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tokenshard.sources.documents.opening"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _asked(process: subprocess.Popen[bytes], data: bytes, password: str | None) -> dict[str, object] | None:
    """The answer of the process; None where it died."""
    stdin, stdout = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
    try:
        stdin.write(json.dumps({"bytes": len(data), "password": password}).encode() + b"\n")
        stdin.write(data)
        stdin.flush()
        line = stdout.readline()
    except OSError:
        return None
    return cast("dict[str, object]", json.loads(line)) if line.endswith(b"\n") else None


def _answer(asked: BinaryIO, answers: BinaryIO) -> None:
    """Open files as long as any come."""
    while line := asked.readline():
        header = json.loads(line)
        data = asked.read(header["bytes"])
        try:
            answer: dict[str, object] = asdict(look_into(data, header["password"]))
        except InputError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _answer(sys.stdin.buffer, sys.stdout.buffer)
