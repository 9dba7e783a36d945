"""CPU time and memory of this process and of all that it starts: worker processes, or a whole Ray."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MB = 1e6


class Usage:
    """What is used between entry and exit of :func:`used`.

    Own and reaped processes' times are the kernel's, to the microsecond. Descendants are looked at now and then, as
    not all pass their times on when they end (Ray's do not); one that lives shorter than ``every`` and is not
    waited for may be missed. Looking is not counted.
    """

    cpu = 0.0
    """seconds"""

    wall = 0.0

    peak = 0.0
    """MB that this process grew by at most, and the most that its descendants had for themselves (USS)"""

    def __init__(self, every: float) -> None:
        self._every, self._ended = every, threading.Event()
        self._times: dict[int, float] = {}
        self._direct: set[int] = set()
        self._others = 0.0
        self._looking = 0.0
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._look()
        self._before = dict(self._times)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self._size = status("VmRSS")
        self._watcher.start()
        self._started, self._own = time.perf_counter(), _own()

    def stop(self) -> None:
        own, self.wall = _own() - self._own, time.perf_counter() - self._started
        self._ended.set()
        self._watcher.join()
        alive = self._look()
        reaped = self._direct - alive  # `_own` has all of their times, those before the start included
        others = sum(spent - self._before.get(pid, 0.0) for pid, spent in self._times.items() if pid not in reaped)
        others -= sum(self._before.get(pid, 0.0) for pid in reaped)
        self.cpu = own - self._looking + others
        self.peak = status("VmHWM") - self._size + self._others

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            self._look(memory=True)
            self._looking = time.thread_time()

    def _look(self, memory: bool = False) -> set[int]:
        me, sizes, alive = psutil.Process(), 0.0, set()
        for process in me.children(recursive=True):
            try:
                times = process.cpu_times()
                if process.ppid() == me.pid:
                    self._direct.add(process.pid)
                if memory:
                    sizes += process.memory_full_info().uss / MB
            except psutil.Error:
                continue
            self._times[process.pid] = times.user + times.system
            alive.add(process.pid)
        self._others = max(self._others, sizes)
        return alive


@contextmanager
def used(every: float = 0.5) -> Iterator[Usage]:
    usage = Usage(every)
    usage.start()
    try:
        yield usage
    finally:
        usage.stop()


def status(field: str) -> float:
    """A figure of /proc/self/status in MB."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / MB


def _own() -> float:
    """CPU seconds of this process and of those it waited for."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        spent = resource.getrusage(who)
        total += spent.ru_utime + spent.ru_stime
    return total
