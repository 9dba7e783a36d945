"""Looks at this machine: Python, packages and extras, processors, memory, disk, GPU."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from tokenshard.doctor.check import Check, Finding
from tokenshard.readable import readable_bytes

FOR_USERS = ("video", "grids", "documents", "train", "distributed", "cluster", "view", "demo", "adapters", "exchange")
"""Extras that are named where they are missing; the others are for developers, or an option names them itself."""
LEAST_DISK = 1 << 30
LEAST_MEMORY = 2 << 30
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?:\[[\w,]+\])?\s*(?:>=|==)?(?P<least>[\d.]*)[^;]*(?:;.*extra == .(?P<extra>[\w-]+))?"
)


def machine_checks() -> list[Check]:
    """All of them, quick ones first."""
    pip = "pip install --upgrade tokenshard"
    return [
        Check("python", _python, "reinstall Python"),
        Check("packages", _packages, pip),
        Check("extras", _extras, pip),
        Check("processors", _processors, "run on a machine whose processors can be counted"),
        Check("memory", _memory, "free memory"),
        Check("disk", _disk, "set TMPDIR to a folder that can be written"),
        Check("gpu", _gpu, "reinstall PyTorch: https://pytorch.org/get-started/locally/"),
    ]


def _python() -> Finding:
    return Finding("ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}")


def _packages() -> Finding:
    found, wrong = [f"tokenshard {version('tokenshard')}"], []
    for name, least, extra in requirements():
        if extra:
            continue
        have = installed(name)
        if have is None:
            wrong.append(f"{name} is missing")
        elif release(have) < release(least):
            wrong.append(f"{name} {have} is older than {least}")
        else:
            found.append(f"{name} {have}")
    if wrong:
        return Finding("failed", "; ".join(wrong), "pip install --upgrade tokenshard")
    return Finding("ok", ", ".join(found))


def _extras() -> Finding:
    missing: dict[str, list[str]] = {}
    for name, least, extra in requirements():
        if extra in FOR_USERS:
            have = installed(name)
            if have is None or release(have) < release(least):
                missing.setdefault(extra, []).append(name)
    if not missing:
        return Finding("ok", f"all there: {', '.join(FOR_USERS)}")
    there = [extra for extra in FOR_USERS if extra not in missing]
    lacking = "; ".join(f"{extra} (needs {', '.join(names)})" for extra, names in missing.items())
    command = f"pip install 'tokenshard[{','.join(missing)}]'"
    text = f"there: {', '.join(there) or 'none'}; not installed: {lacking}"
    return Finding("note", text, f"where you need them: {command}")


def requirements() -> Iterator[tuple[str, str, str]]:
    """(package, least version or nothing, extra or nothing) of each requirement of the installed tokenshard."""
    for line in requires("tokenshard") or ():
        found = _REQUIREMENT.match(line)
        if found is not None:
            yield found["name"], found["least"] or "0", found["extra"] or ""


def installed(name: str) -> str | None:
    """The version of a package that is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def release(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing: 2.6.0+cpu -> (2, 6, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _processors() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_numbers("/sys/fs/cgroup/cpu.max")
    text = f"{usable} usable"
    if len(quota) == 2 and quota[0] / quota[1] < usable:
        text += f", limited to {quota[0] / quota[1]:.1f} by the control group"
    return Finding("ok", text)


def _memory() -> Finding:
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return Finding("ok", "not measured on this system")
    lines = dict(re.findall(r"(\w+):\s+(\d+) kB", facts.read_text()))
    whole, free = 1024 * int(lines["MemTotal"]), 1024 * int(lines["MemAvailable"])
    text = f"{readable_bytes(free)} free of {readable_bytes(whole)}"
    if limit := _first_numbers("/sys/fs/cgroup/memory.max"):
        used = sum(_first_numbers("/sys/fs/cgroup/memory.current"))
        free = min(free, int(limit[0] - used))
        text += f", {readable_bytes(max(0, free))} left of the {readable_bytes(limit[0])} of the control group"
    if free < LEAST_MEMORY:
        return Finding("note", text, "close other programs, or convert with --workers 1 and a smaller --batch-size")
    return Finding("ok", text)


def _first_numbers(path: str) -> list[float]:
    """Numbers of a file of the kernel; none where it is not there or says `max`."""
    try:
        words = Path(path).read_text().split()
    except OSError:
        return []
    return [float(word) for word in words] if words and all(word.isdecimal() for word in words) else []


def _disk() -> Finding:
    folders = {"here": Path.cwd(), "for temporary files": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(folder).free for name, folder in folders.items()}
    with tempfile.TemporaryFile() as file:
        file.write(b"tokenshard")
    text = ", ".join(f"{readable_bytes(size)} free {name} ({folders[name]})" for name, size in free.items())
    if min(free.values()) < LEAST_DISK:
        return Finding("note", text, "free disk space, or set TMPDIR to a folder on another disk")
    return Finding("ok", text)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return Finding("ok", f"{', '.join(names)}; CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Finding("ok", "Apple GPU (mps)")
    if torch.version.cuda is not None and Path("/proc/driver/nvidia").exists():
        remedy = "update the NVIDIA driver, or install a PyTorch for the CUDA version of this one"
        return Finding("failed", f"a driver is there, but PyTorch (CUDA {torch.version.cuda}) finds no GPU", remedy)
    return Finding("ok", "none; everything works on processors")
