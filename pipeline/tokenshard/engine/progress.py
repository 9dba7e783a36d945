"""How a running job is shown: a live bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING

from tokenshard.engine.job_folder import Receipt
from tokenshard.engine.task import Done
from tokenshard.readable import readable_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LOG_SECONDS = 10.0


class Progress:
    """Counts what is done; subclasses show it. Use as a context manager."""

    def __init__(self) -> None:
        self.phase = ""
        self.total: int | None = None
        self.done = self.at_start = self.rejects = self.raw_bytes = self.token_bytes = 0
        self._started = time.monotonic()

    @staticmethod
    def silent() -> Progress:
        return Progress()

    @staticmethod
    def on_stderr(log_format: str = "text") -> Progress:
        """A bar if stderr is a terminal, else log lines; ``json``: these as one JSON object a line."""
        if log_format == "json":
            return JsonProgress()
        return BarProgress() if sys.stderr.isatty() else LogProgress()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def start(self, phase: str, total: int | None, done: int = 0) -> None:
        """A new phase; ``done`` of its inputs were done by earlier runs."""
        self.phase, self.total, self.done, self.at_start = phase, total, done, done
        self._started = time.monotonic()
        self.show()

    def advance(self, inputs: int) -> None:
        self.done += inputs
        self.show()

    def unit(self, receipt: Receipt, done: Done) -> None:
        """One unit is committed."""
        self.rejects += receipt.rejected
        self.raw_bytes += receipt.raw_bytes
        self.token_bytes += receipt.shard.bytes if receipt.shard else 0
        self.advance(receipt.rows + receipt.rejected)

    def note(self, text: str) -> None:
        """A line for the user."""

    def show(self) -> None:
        """Called after every change."""

    @property
    def rate(self) -> float:
        """Inputs a second in this phase and run."""
        return (self.done - self.at_start) / max(1e-9, time.monotonic() - self._started)

    def text(self) -> str:
        of = f"/{self.total:,}" if self.total is not None else ""
        line = f"{self.phase}: {self.done:,}{of} inputs"
        if self.phase == "converting":
            left = (self.total or 0) - self.done
            line += f", {self.rate:,.0f}/s, {readable_bytes(self.raw_bytes)} in, {readable_bytes(self.token_bytes)} out"
            line += f", {self.rejects:,} rejects"
            line += f", {left / self.rate:,.0f} s left" if self.rate > 0 and left else ""
        return line


class LogProgress(Progress):
    """A line on stderr at the start of a phase, every ten seconds, and at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = 0.0
        self._last_phase = ""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def show(self) -> None:
        now = time.monotonic()
        finished = self.total is not None and self.done >= self.total
        if self.phase != self._last_phase or now - self._shown > LOG_SECONDS or finished:
            self._shown, self._last_phase = now, self.phase
            self.report()

    def report(self) -> None:
        """Write where the job is."""
        self.note(self.text())


class JsonProgress(LogProgress):
    """The same, and a line a unit and a warning, as JSON objects with `time` (UTC), `level` and `event`."""

    def __enter__(self) -> Progress:
        self._handler = _JsonHandler(self)
        logging.getLogger("tokenshard").addHandler(self._handler)
        logging.getLogger("tokenshard").propagate = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("tokenshard").removeHandler(self._handler)
        logging.getLogger("tokenshard").propagate = True
        if error is not None:
            self.write("error", "failed", message=str(error), error=type(error).__name__)

    def write(self, level: str, event: str, **fields: object) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event, **fields}
        print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.write("info", "note", message=text)

    def unit(self, receipt: Receipt, done: Done) -> None:
        shard = receipt.shard
        self.write(
            "info",
            "unit",
            unit=receipt.unit,
            rows=receipt.rows,
            rejected=receipt.rejected,
            raw_bytes=receipt.raw_bytes,
            shard_bytes=shard.bytes if shard else 0,
            seconds=round(done.seconds, 3),
            stages={stage: round(seconds, 3) for stage, seconds in done.stages.items()},
        )
        super().unit(receipt, done)

    def report(self) -> None:
        self.write(
            "info",
            "progress",
            phase=self.phase,
            done=self.done,
            total=self.total,
            rate=round(self.rate, 3),
            rejects=self.rejects,
            raw_bytes=self.raw_bytes,
            shard_bytes=self.token_bytes,
        )


class _JsonHandler(logging.Handler):
    def __init__(self, progress: JsonProgress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.write(record.levelname.lower(), "log", logger=record.name, message=record.getMessage())


class BarProgress(Progress):
    """A live bar."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self._bar: Bar = Progress(
            SpinnerColumn(),
            BarColumn(24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._bar.console.print(text)

    def show(self) -> None:
        self._bar.update(self._task, description=self.text(), total=self.total, completed=self.done)
