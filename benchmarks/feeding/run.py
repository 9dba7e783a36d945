"""One loader in a process of its own: ``python -m feeding.run PEER RAW FOLDER EPOCHS SECONDS`` prints a JSON line.

A loader is opened once and stays open: CPU time is that of whole epochs after its first. The NumPy gather runs before
and after each of them, so that the ratio holds whatever else the machine does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from feeding.maps import Memmap
from feeding.peer import Peer
from feeding.peers import PEERS
from feeding.tokens import Tokens
from feeding.usage import Usage, used

SAMPLES = 1000
"""Single samples that are read by number."""


def epoch(peer: Peer, every: float = 0.5) -> Usage:
    with used(every) as usage:
        for _ in peer.epoch():
            pass
    return usage


def gather(reference: Memmap) -> float:
    """CPU seconds of an epoch of the reference, on this thread whatever others do."""
    begun = time.thread_time()
    for _ in reference.epoch():
        pass
    return time.thread_time() - begun


def checked(peer: Peer, tokens: Tokens) -> float:
    """Milliseconds from opening to the first batch; the epoch is compared with the source: each sample once, mixed."""
    started, first = time.perf_counter(), 0.0
    seen: list[int] = []
    hashes: list[int] = []
    for codes, labels, keys in peer.epoch():
        first = first or 1000 * (time.perf_counter() - started)
        if keys is None or labels is None:
            hashes += [xxhash.xxh3_64_intdigest(row.tobytes()) for row in codes.numpy()]
            continue
        ids = [int((key.decode() if isinstance(key, bytes) else key)[-9:]) for key in keys]
        assert (codes.numpy() == tokens.codes[ids]).all()
        assert (labels.numpy() == tokens.labels[ids]).all()
        seen += ids
    if hashes:
        stored = [xxhash.xxh3_64_intdigest(row.tobytes()) for row in tokens.codes]
        assert sorted(hashes) == sorted(stored), "an epoch is not the set"
        assert hashes != stored, "an epoch is not shuffled"
        return first
    assert sorted(seen) == list(range(len(tokens.codes))), f"{len(set(seen))} samples of {len(tokens.codes)}"
    assert seen != sorted(seen), "an epoch is not shuffled"
    return first


def sample_us(read: Callable[[int], Any] | None, count: int) -> float | None:
    """Median microseconds for one sample by number, when each was read once before."""
    if read is None:
        return None
    spent, numbers = [], np.random.default_rng(0).integers(0, count, SAMPLES).tolist()
    for number in numbers:
        read(number)
    for number in numbers:
        started = time.perf_counter_ns()
        read(number)
        spent.append(time.perf_counter_ns() - started)
    return round(statistics.median(spent) / 1000, 1)


def write(peer: Peer, raw: Path) -> None:
    """Prints the CPU seconds that writing takes."""
    peer.folder.mkdir(parents=True)
    with used() as usage:
        peer.write(raw)
    print(json.dumps(usage.cpu))


def figures(name: str, raw: Path, folder: Path, epochs: int, seconds: float) -> dict[str, Any]:
    """All that the benchmark says of a loader. The last epoch begins at most ``seconds`` after the first."""
    command = [sys.executable, "-m", "feeding.run", name, str(raw), str(folder), "write"]  # apart, for its memory
    written = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    tokens = Tokens.load(raw)
    count = len(tokens.codes)
    cold = epoch(PEERS[name](folder), 0.1)  # imports, compiles and fills caches, too
    peer = PEERS[name](folder)
    first = checked(peer, tokens)
    reference = Memmap(folder / "reference")
    reference.write(raw)
    gather(reference)
    ratios, costs, rates, yardsticks = [], [], [], []
    deadline = time.monotonic() + seconds
    while len(ratios) < epochs and (not ratios or time.monotonic() < deadline):
        before = gather(reference)
        usage = epoch(peer)
        yardsticks.append((before + gather(reference)) / 2)
        ratios.append(usage.cpu / yardsticks[-1])
        costs.append(1e6 * usage.cpu / count)
        rates.append(count / usage.wall)
    resumed = peer.resumes()
    return {
        "peer": name,
        "note": peer.note,
        "samples": count,
        "ids": int(tokens.codes[0].size),
        "times_memmap": round(statistics.median(ratios), 2),
        "times_memmap_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "epochs": len(ratios),
        "cpu_us": round(statistics.median(costs), 3),
        "memmap_us": round(1e6 * statistics.median(yardsticks) / count, 3),
        "samples_per_s": round(statistics.median(rates)),
        "bytes": round(stored / count, 1),
        "first_batch_ms": round(first, 1),
        "write_cpu_us": round(1e6 * written / count, 2),
        "peak_growth_mb": round(cold.peak, 1),
        "resume": resumed and resumed[0],
        "state_bytes": resumed and resumed[1],
        "sample_us": sample_us(peer.sample(), count),
        "load": round(os.getloadavg()[0], 1),
    }


def main(name: str, raw: str, folder: str, *numbers: str) -> None:
    if numbers[0] == "write":
        write(PEERS[name](Path(folder)), Path(raw))
        return
    print(json.dumps(figures(name, Path(raw), Path(folder), int(numbers[0]), float(numbers[1]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
