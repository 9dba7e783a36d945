"""CPU time, memory and bits of one rival on one block of ids."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from coding.rivals import Kind, Rival
from coding.tokens import Block

RUNS = 5
SLOW_SECONDS = 1.0
"""Actions that take longer run three times instead of five."""


@dataclass(frozen=True)
class Row:
    """A rival on a block of ids; speeds and memory only where they were measured."""

    tokens: str
    ids: str
    """which images"""
    num_ids: int
    codec: str
    kind: Kind
    bits: float
    """an id, tables excluded"""
    table_bytes: int
    of_entropy: float
    """bits to the order-0 entropy of these very ids"""
    encode: float | None = None
    """million ids a second of CPU time"""
    decode: float | None = None
    memory: float | None = None
    """MiB that encoding or decoding adds to the resident memory at its peak, results included"""


def entropy(block: Block) -> float:
    """Order-0 entropy, bits an id: of each level by itself, then the mean."""
    bits = []
    for ids in block.levels:
        shares = np.unique_counts(ids).counts / len(ids)
        bits.append(float(-(shares * np.log2(shares)).sum()))
    return statistics.mean(bits)


def measured(tokens: str, ids: str, block: Block, rival: Rival, speed: bool) -> Row:
    """Encode, check that decoding gives the same ids, count; with ``speed``, time both and watch memory."""
    coded = rival.encode()
    decoded = rival.decode(coded)
    if not np.array_equal(decoded.reshape(-1), _expected(block, rival)):
        raise SystemExit(f"{rival.name} does not give back the ids of {tokens}, {ids}")
    bits = 8 * rival.size(coded) / block.size
    row = (tokens, ids, block.size, rival.name, rival.kind, bits, rival.table_bytes, bits / entropy(block))
    if not speed:
        return Row(*row)
    million = block.size / 1e6
    encode, decode = (million / cpu_seconds(run) for run in (rival.encode, lambda: rival.decode(coded)))
    memory = max(peak_growth(rival.encode), peak_growth(lambda: rival.decode(coded)))
    return Row(*row, encode, decode, memory)


def _expected(block: Block, rival: Rival) -> np.ndarray:
    if rival.name.endswith("levels in turn"):
        return np.stack(block.levels, axis=1).reshape(-1)
    return np.concatenate(block.levels)


def cpu_seconds(action: Callable[[], Any]) -> float:
    """Median CPU seconds of an action, after one run that does not count."""
    times = []
    while len(times) <= (RUNS if not times or times[0] < SLOW_SECONDS else 3):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def peak_growth(action: Callable[[], Any]) -> float | None:
    """MiB by which an action raises the resident memory of this process at its peak; None where not on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _kib(status, "VmRSS")
    result = action()
    peak = _kib(status, "VmHWM")
    del result
    return max(peak - before, 0) / 1024


def _kib(status: Path, field: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
