"""Our loader beside others: the same ids, labels and keys, each in its own format, shuffled, in batches of 256.

    python benchmarks/loader.py [--images FOLDER] [--samples N] [--side 16] [--epochs 3] [--only NAME …] [--out FOLDER]

Every loader runs in a process of its own, with as little parallelism as it has (ours: one thread), and gives the same
batch: a uint16 tensor, labels, a list of string keys; an epoch of each is compared with the source. What counts is CPU
time a sample, as a multiple of a NumPy gather from a memory map that runs before and after each epoch. Loaders whose
library is not installed (`pip install tokenshard[peers]`) are listed with the reason. FOLDER gets `loader.json` and
`loader.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from feeding.peers import PEERS
from feeding.tokens import make_tokens

TIMEOUT = 900


def measure(name: str, raw: Path, folder: Path, epochs: int) -> dict[str, Any] | str:
    """Figures of a loader, or why there are none."""
    command = [sys.executable, "-m", "feeding.run", name, str(raw), str(folder), str(epochs)]
    try:
        ran = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"took more than {TIMEOUT} seconds"
    if ran.returncode:
        return ran.stderr.strip().splitlines()[-1]
    found: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """CPU time and bytes of each loader."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(rows, key=lambda row: row["times_memmap"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 0.4 * len(rows) + 1.5), sharey=True)
    names = [row["peer"] for row in rows]
    colours = ["tab:orange" if name.startswith("tokenshard") else "tab:blue" for name in names]
    left.barh(names, [row["times_memmap"] for row in rows], color=colours)
    left.set_xscale("log")
    left.set_xlabel("CPU time a sample, × memory map")
    left.invert_yaxis()
    right.barh(names, [row["bytes"] for row in rows], color=colours)
    right.set_xlabel("bytes a sample")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our loader beside others.")
    parser.add_argument("--images", type=Path, help="photographs; by default those of scikit-image")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=16, help="ids along each side of a sample")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--out", type=Path, default=Path("loader-results"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / "raw"
        make_tokens(options.images, options.samples, options.side).save(raw)
        print(f"{options.samples} samples of {options.side**2} ids; load {os.getloadavg()[0]:.1f}")
        heads = ("x memmap", "CPU us", "samples/s", "bytes", "first ms", "write us", "MiB", "resume")
        print(f"{'':22}" + "".join(f"{head:>11}" for head in heads))
        for name in options.only:
            found = measure(name, raw, Path(temporary) / name.replace(" ", "-"), options.epochs)
            if isinstance(found, str):
                print(f"{name:22}{found}", flush=True)
                continue
            rows.append(found)
            fields = ("times_memmap", "cpu_us", "samples_per_s", "bytes", "first_batch_ms", "write_cpu_us")
            shown = [found[field] for field in (*fields, "peak_growth_mib", "resume")]
            print(f"{name:22}" + "".join(f"{'-' if value is None else value!s:>11}" for value in shown), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "loader.json").write_text(json.dumps(rows, indent=2) + "\n")
    plot(rows, options.out / "loader.png")


if __name__ == "__main__":
    main()
