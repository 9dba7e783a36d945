"""CPU time and memory of a process and of all its descendants (Linux: peaks are read from `/proc`)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MIB = 1 << 20


def cpu_seconds(root: psutil.Process) -> float:
    """User and system time of a process and its descendants, those that ended included."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass(frozen=True)
class Ran:
    """What a measured process printed, the peak resident MiB of its tree by role, and the CPU seconds of the tree."""

    figures: dict[str, Any]
    peaks: dict[str, float]
    cpu: float


def measured(role: str, **arguments: Any) -> Ran:
    """Run `conversion.runs` (or `conversion.peer`) in a process of its own and watch its memory from outside."""
    module = "conversion.peer" if role == "peer" else "conversion.runs"
    child = subprocess.Popen(
        [sys.executable, "-m", module, role, json.dumps(arguments)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peaks: dict[str, float] = defaultdict(float)
    with watching(child.pid, peaks) as cpu:
        output, errors = child.communicate()
    if child.returncode:
        raise SystemExit(f"{errors}\n{role} {arguments}: ended with exit code {child.returncode}")
    figures = next(line for line in reversed(output.splitlines()) if line.startswith("{"))  # Ray prints, too
    return Ran(json.loads(figures), dict(peaks), sum(cpu.values()))


@contextmanager
def watching(pid: int, peaks: dict[str, float]) -> Iterator[dict[int, float]]:
    """Note the memory of a process and its descendants by role in ``peaks`` (MiB), and CPU seconds by process."""
    cpu: dict[int, float] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(psutil.Process(pid), peaks, cpu, ended))
    watcher.start()
    try:
        yield cpu
    finally:
        ended.set()
        watcher.join()


def _watch(root: psutil.Process, peaks: dict[str, float], cpu: dict[int, float], ended: threading.Event) -> None:
    """Note ten times a second what the kernel counts for each process: Ray's do not pass their times on at the end."""
    while not ended.wait(0.1):
        try:
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                role = "driver" if process == root else _role(process.cmdline())
                status = Path(f"/proc/{process.pid}/status").read_text()
                cpu[process.pid] = sum(process.cpu_times()[:2])
            except (psutil.Error, OSError):
                continue
            figures = dict(line.split(":", 1) for line in status.splitlines())
            for name, field in ((role, "VmHWM"), (f"{role} shared", "RssShmem")):
                peaks[name] = max(peaks[name], int(figures.get(field, "0 kB").split()[0]) / 1024)


def _role(words: list[str]) -> str:
    """Unit workers and pilots of both engines by name; everything else is `other`."""
    line = " ".join(words)
    if "tokenshard.engine.worker pilot" in line or line.startswith("ray::pilot"):
        return "pilot"
    if "tokenshard.engine.worker" in line or line.startswith(("ray::UnitActor", "ray::set up", "ray::unit ")):
        return "worker"
    return "raylet" if words and words[0].endswith("/raylet") else "other"
