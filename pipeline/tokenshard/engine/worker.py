"""One worker: sets itself up from the job folder, then turns tasks into results. Knows no executor.

Run as ``python -m tokenshard.engine.worker FD`` it is the process behind the local executor: it reads its address from
the pipe, says how its set-up went, and then answers each task with its result.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

from threadpoolctl import threadpool_limits

from tokenshard.engine.job_folder import JobFolder
from tokenshard.engine.task import Done, Failure, Runner, Task, WorkerAddress
from tokenshard.errors import InputError, TokenshardError
from tokenshard.store import Store

NUMERIC_THREADS = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Environment of a worker process: parallelism comes from workers, not from threads inside a kernel."""


class Worker:
    """Runs tasks of one job. The heavy imports happen in :meth:`setup`."""

    def __init__(self, address: WorkerAddress) -> None:
        self._folder = JobFolder(Store(address.output, address.options), address.version)
        self._role = address.role

    def setup(self) -> Failure | None:
        """Load what the role needs (tokenizer, codecs, source); None when ready for tasks."""
        try:
            if self._role == "pilot":
                from tokenshard.engine.pilot import PilotRunner

                self._runner: Runner = PilotRunner(self._folder)
            else:
                from tokenshard.engine.unit import UnitRunner

                self._runner = UnitRunner(self._folder)
        except Exception as error:
            return failure_of(error)
        return None

    def run(self, task: Task) -> Done | Failure:
        """One task; never raises."""
        started = time.monotonic()
        try:
            with threadpool_limits(
                1, user_api="blas"
            ):  # sums depend on threads; in a worker process there is one anyway
                receipt = self._runner.run(task)
        except Exception as error:
            return failure_of(error)
        return Done(receipt, time.monotonic() - started, self._runner.stages.seconds)


def failure_of(error: Exception) -> Failure:
    """An exception as it travels to the driver. Errors made for users are fatal: no retry of the unit helps."""
    fatal = isinstance(error, TokenshardError) and not isinstance(error, InputError)
    return Failure(type(error).__name__, str(error) or repr(error), fatal, traceback.format_exc())


def _end_with(driver: int) -> None:
    """End this process, whatever it is at, once its driver is gone."""
    while os.getppid() == driver:
        time.sleep(1)
    os._exit(0)


def _serve(pipe: Connection) -> None:
    worker = Worker(pipe.recv())
    failure = worker.setup()
    pipe.send(failure)
    while failure is None:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        pipe.send(worker.run(task))


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    try:
        _serve(Connection(int(sys.argv[1])))
    except (BrokenPipeError, EOFError):
        os._exit(0)  # the driver is gone
