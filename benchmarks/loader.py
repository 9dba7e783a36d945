"""Our loader beside others: the same ids, labels and keys, each in its own format, shuffled, in batches of 256.

    python benchmarks/loader.py [--images FOLDER] [--samples N] [--side 16] [--epochs 3] [--only NAME …] [--out FOLDER]

Every loader runs in a process of its own, with as little parallelism as it has (ours: one thread), and gives the same
batch: a uint16 tensor, labels, a list of string keys; an epoch of each is compared with the source. What counts is CPU
time a sample, of the process and all it starts, as a multiple of a NumPy gather from a memory map that runs before and
after each epoch. Loaders stay open from one epoch to the next; the last epoch measured begins at most `--seconds`
after the first. FOLDER gets `loader.json` and `loader.png`.

| column | |
|---|---|
| first ms | from opening to the first batch, in a process that has read an epoch before |
| write us | CPU time a sample of the library's own writer |
| MB | the most that memory grew by in the first epoch: imports, caches, prefetch, mapped files; worker processes' own |
| resume | a state taken after 7 batches, stored, given to a new loader: are the next 100 batches the same? |
| ds[i] us | median of one sample by number, each read before |

Loaders whose library is not installed (`pip install tokenshard[peers]`) are listed with the reason. MosaicML Streaming
is an extra of its own (`mds`) because it asks for NumPy below 2.2; `pip install --no-deps mosaicml-streaming` and what
it then misses works with later ones. FFCV is built by hand, after `apt-get install pkg-config libturbojpeg0-dev
libopencv-dev`, into a folder that is put on PYTHONPATH:

    pip install --target DIR --no-deps --no-build-isolation ffcv
    pip install --target DIR --no-deps terminaltables pytorch_pfn_extras fastargs assertpy opencv-python-headless
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from feeding.goals import OURS, goals
from feeding.peers import PEERS
from feeding.tokens import make_tokens

TIMEOUT = 900
COLUMNS = {
    "times_memmap": "x memmap",
    "cpu_us": "CPU us",
    "samples_per_s": "samples/s",
    "bytes": "bytes",
    "first_batch_ms": "first ms",
    "write_cpu_us": "write us",
    "peak_growth_mb": "MB",
    "resume": "resume",
    "state_bytes": "state B",
    "sample_us": "ds[i] us",
}


def measure(name: str, raw: Path, folder: Path, epochs: int, seconds: float) -> dict[str, Any] | str:
    """Figures of a loader, or why there are none."""
    command = [sys.executable, "-m", "feeding.run", name, str(raw), str(folder), str(epochs), str(seconds)]
    child = subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that workers can be ended with it
    )
    try:
        output, errors = child.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return f"took more than {TIMEOUT} seconds"
    if child.returncode:
        return next((line for line in reversed(errors.splitlines()) if line.strip()), f"exit code {child.returncode}")
    found: dict[str, Any] = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """CPU time and bytes of each loader."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(rows, key=lambda row: row["times_memmap"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 0.4 * len(rows) + 1.5), sharey=True)
    names = [row["peer"] for row in rows]
    colours = ["tab:orange" if name.startswith(OURS) else "tab:blue" for name in names]
    left.barh(names, [row["times_memmap"] for row in rows], color=colours)
    left.set_xscale("log")
    left.set_xlabel("CPU time a sample, × memory map")
    left.invert_yaxis()
    right.barh(names, [row["bytes"] for row in rows], color=colours)
    right.set_xscale("log")
    right.set_xlabel("bytes a sample")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our loader beside others.")
    parser.add_argument("--images", type=Path, help="photographs; by default those of scikit-image")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=16, help="ids along each side of a sample")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="after which no further epoch of a loader begins")
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--out", type=Path, default=Path("loader-results"))
    options = parser.parse_args()
    rows, missing = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / "raw"
        make_tokens(options.images, options.samples, options.side).save(raw)
        print(f"{options.samples} samples of {options.side**2} ids; load {os.getloadavg()[0]:.1f}")
        print(f"{'':22}" + "".join(f"{head:>10}" for head in COLUMNS.values()))
        for name in options.only:
            place = Path(temporary) / name.replace(" ", "-")
            found = measure(name, raw, place, options.epochs, options.seconds)
            if isinstance(found, str):
                missing[name] = found
                print(f"{name:22}{found}", flush=True)
                continue
            rows.append(found)
            print(f"{name:22}" + "".join(f"{shown(found[field]):>10}" for field in COLUMNS), found["note"], flush=True)
    reached = goals(rows)
    print("", *reached, sep="\n")
    options.out.mkdir(parents=True, exist_ok=True)
    document = {"rows": rows, "missing": missing, "goals": [goal.json() for goal in reached]}
    (options.out / "loader.json").write_text(json.dumps(document, indent=2) + "\n")
    plot(rows, options.out / "loader.png")


if __name__ == "__main__":
    main()
