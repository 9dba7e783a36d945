"""One loader in a process of its own: ``python -m feeding.run PEER RAW FOLDER EPOCHS`` prints a JSON line.

CPU time is that of the process and its ended children, over the epochs after the first; the NumPy gather runs before
and after each epoch, so that the ratio holds whatever else the machine does.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from feeding.peers import PEERS, Memmap, Peer
from feeding.tokens import Tokens


def cpu() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def timed(peer: Peer, number: int) -> tuple[float, float]:
    """CPU and wall seconds of an epoch."""
    begun, started = cpu(), time.perf_counter()
    for _ in peer.epoch(number):
        pass
    return cpu() - begun, time.perf_counter() - started


def peak_growth(peer: Peer) -> float:
    """MiB that the process grows by at most during an epoch, the loader's imports included."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    for _ in peer.epoch(0):
        pass
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def checked(peer: Peer, tokens: Tokens) -> float:
    """Seconds to the first batch of an epoch, all of which is compared with the source."""
    started, first = time.perf_counter(), 0.0
    seen = 0
    for codes, labels, keys in peer.epoch(0):
        first = first or time.perf_counter() - started
        ids = [int((key.decode() if isinstance(key, bytes) else key)[-9:]) for key in keys]
        assert (codes.numpy() == tokens.codes[ids]).all()
        assert (labels.numpy() == tokens.labels[ids]).all()
        seen += len(ids)
    assert seen == len(tokens.codes), f"{seen} samples in an epoch of {len(tokens.codes)}"
    return first


def main(name: str, raw: str, place: str, epochs: str) -> None:
    folder = Path(place)
    peer = PEERS[name](folder)
    if epochs == "write":
        folder.mkdir(parents=True)
        begun = cpu()
        peer.write(Path(raw))
        print(json.dumps(cpu() - begun))
        return
    tokens = Tokens.load(Path(raw))
    count = len(tokens.codes)
    command = [sys.executable, "-m", "feeding.run", name, raw, place, "write"]  # apart, for its memory
    written = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]) / count
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    growth = peak_growth(peer)  # compiles and fills caches, too
    reference = Memmap(folder / "reference")
    reference.write(Path(raw))
    first = checked(peer, tokens)
    ratios, costs, walls = [], [], []
    for number in range(1, 1 + int(epochs)):
        around = [timed(reference, number)[0]]
        used, wall = timed(peer, number)
        around.append(timed(reference, number)[0])
        ratios.append(used / statistics.mean(around))
        costs.append(used / count)
        walls.append(count / wall)
    figures = {
        "peer": name,
        "samples": count,
        "ids": int(tokens.codes[0].size),
        "times_memmap": round(statistics.median(ratios), 2),
        "cpu_us": round(1e6 * statistics.median(costs), 3),
        "samples_per_s": round(statistics.median(walls)),
        "bytes": round(stored / count, 1),
        "first_batch_ms": round(1000 * first, 1),
        "write_cpu_us": round(1e6 * written, 2),
        "peak_growth_mib": round(growth, 1),
        "resume": peer.resumes(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
