"""One unit worker: sets itself up from the job folder, then turns tasks into results. Knows no executor.

Run as ``python -m tokenshard.engine.worker ROLE FD`` it is the process behind the local executor: it reads its address
from the pipe, and then runs the pilot, or takes tasks and answers each with its result.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection

from tokenshard.engine.job_folder import JobFolder
from tokenshard.engine.task import Done, Failure, Task, WorkerAddress
from tokenshard.errors import FormatError, SpecError, StoreError
from tokenshard.store import Store

NUMERIC_THREADS = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Environment of a worker process: parallelism comes from workers, not from threads inside a kernel."""


class Worker:
    """Runs tasks of one job. The heavy imports happen in :meth:`setup`."""

    def __init__(self, address: WorkerAddress) -> None:
        self._folder = JobFolder(Store(address.output, address.options), address.version)

    def setup(self) -> Failure | None:
        """Load tokenizer, codecs and source; None when ready for tasks."""
        try:
            from tokenshard.engine.unit import UnitRunner

            self._runner = UnitRunner(self._folder)
        except Exception as error:
            return failure_of(error)
        return None

    def pilot(self) -> Failure | None:
        """Fit tokenizer and codec on a sample of the planned inputs; the result goes to the job folder."""
        try:
            from tokenshard.engine.pilot import run_pilot

            run_pilot(self._folder)
        except Exception as error:
            return failure_of(error)
        return None

    def run(self, task: Task) -> Done | Failure:
        """One task; never raises."""
        started = time.monotonic()
        try:
            receipt = self._runner.run(task)
        except Exception as error:
            return failure_of(error)
        return Done(receipt, time.monotonic() - started)


def failure_of(error: Exception) -> Failure:
    """An exception as it travels to the driver. Storage and format errors are fatal: no retry of the unit helps."""
    fatal = isinstance(error, StoreError | FormatError | SpecError)
    return Failure(type(error).__name__, str(error) or repr(error), fatal, traceback.format_exc())


def _serve(role: str, pipe: Connection) -> None:
    worker = Worker(pipe.recv())
    if role == "pilot":
        pipe.send(worker.pilot())
        return
    failure = worker.setup()
    pipe.send(failure)
    while failure is None:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        pipe.send(worker.run(task))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    try:
        _serve(sys.argv[1], Connection(int(sys.argv[2])))
    except (BrokenPipeError, EOFError):
        os._exit(0)  # the driver is gone
