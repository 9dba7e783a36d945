"""The local executor: worker processes on this machine, or (with no workers) the calling process itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from multiprocessing import connection

from tokenshard.engine.task import Died, Event, Failure, Finished, Ready, SetupFailed, Task, WorkerAddress
from tokenshard.engine.worker import NUMERIC_THREADS, Worker


class _Process:
    def __init__(self, address: WorkerAddress) -> None:
        self.pipe, theirs = connection.Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tokenshard.engine.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **NUMERIC_THREADS},
                stdin=subprocess.DEVNULL,
            )
        self.ready = False
        self.pipe.send(address)

    def reason(self) -> str:
        code = self.process.wait()
        if code < 0:
            return f"worker process killed by {signal.Signals(-code).name}"
        return f"worker process ended with exit code {code}"


class LocalExecutor:
    """``size`` worker processes. They die alone: a crash in a decoder costs one worker, not the job."""

    def __init__(self, address: WorkerAddress, size: int) -> None:
        self.size = size
        self._address = address
        self._processes: dict[int, _Process] = {}
        self._spawned = 0

    def spawn(self) -> int:
        self._spawned += 1
        self._processes[self._spawned] = _Process(self._address)
        return self._spawned

    def submit(self, worker: int, task: Task) -> None:
        try:
            self._processes[worker].pipe.send(task)
        except OSError:
            return  # it died; wait() reports that

    def wait(self, timeout: float) -> list[Event]:
        by_pipe = {process.pipe: number for number, process in self._processes.items()}
        ready = connection.wait(list(by_pipe), timeout)
        return [self._receive(by_pipe[pipe]) for pipe in ready if isinstance(pipe, connection.Connection)]

    def _receive(self, number: int) -> Event:
        process = self._processes[number]
        try:
            message = process.pipe.recv()
        except (EOFError, OSError):
            del self._processes[number]
            process.pipe.close()
            return Died(number, process.reason())
        if process.ready:
            return Finished(number, message)
        if isinstance(message, Failure):
            del self._processes[number]
            process.pipe.close()
            process.process.wait()
            return SetupFailed(number, message)
        process.ready = True
        return Ready(number)

    def kill(self, worker: int) -> None:
        self._processes[worker].process.kill()

    def close(self) -> None:
        for process in self._processes.values():
            process.pipe.close()
            process.process.kill()
        for process in self._processes.values():
            process.process.wait()
        self._processes.clear()


class InlineExecutor:
    """One worker that is the calling process: no start-up cost, no protection against crashes."""

    size = 1

    def __init__(self, address: WorkerAddress) -> None:
        self._worker = Worker(address)
        self._tasks: deque[Task] = deque()
        self._spawned = False

    def spawn(self) -> int:
        self._spawned = False
        return 1

    def submit(self, worker: int, task: Task) -> None:
        self._tasks.append(task)

    def wait(self, timeout: float) -> list[Event]:
        if not self._spawned:
            self._spawned = True
            failure = self._worker.setup()
            return [SetupFailed(1, failure) if failure else Ready(1)]
        if self._tasks:
            return [Finished(1, self._worker.run(self._tasks.popleft()))]
        return []

    def kill(self, worker: int) -> None:
        return

    def close(self) -> None:
        self._tasks.clear()


def cpu_slots() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
