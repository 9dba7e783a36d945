"""What the conversion engine costs beside a plain loop, and how much memory it takes.

    python benchmarks/convert.py [throughput|memory|unit|overhead|plan …] [--images FOLDER] [--quick] [--json FILE]

* throughput: CPU and wall time per image of the engines with two workers, against a single-process loop over the same
  functions, and against a Ray Data pipeline that does the same work. Start-up, plan and pilot are not counted.
* memory: peak memory of driver and workers for 2,000 and for 20,000 inputs.
* unit: one unit of 4,096 images of 256 x 256 pixels on Ray: peak memory of its actor, object store, spills.
* overhead: 2,000 units of one tiny image on Ray: CPU time and memory of the driver.
* plan: a dry run over a table of 10,000,000 rows: time and memory.

Machines are shared. So runs alternate; CPU time is the median of the ratios of runs that followed each other, and
wall time the least of all runs. Memory is the peak resident size the kernel reports for each process. Without a folder
the images are squares of photographs that ship with scikit-image.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conversion.inputs import linked, long_table, real_images, small_images
from conversion.processes import measured

WORKERS = 2
TOKENIZER = "patch:8x8,k=1024"


@dataclass(frozen=True)
class Row:
    """One line of the table. ``target`` is what is asked for, if anything."""

    part: str
    what: str
    value: float | str
    unit: str = ""
    target: str = ""


def job(source: Path, output: Path, samples: int, engine: str = "local", **source_fields: Any) -> dict[str, Any]:
    return {
        "source": {"path": str(source), **source_fields},
        "output": str(output),
        "tokenizer": TOKENIZER,
        "unit": {"samples": samples, "bytes": 1 << 40},
        "engine": {"kind": engine, "workers": WORKERS},
    }


def throughput(options: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    count, samples, runs = (768, 64, 1) if options.quick else (5632, 256, 5)
    images = linked(real_images(options.images, scratch), scratch / "images", count)
    prepared = scratch / "prepared"
    tokenizer = measured("prepare", job=job(images, prepared, samples)).figures["tokenizer"]
    arms: dict[str, list[dict[str, float]]] = {"loop": [], "local": [], "ray": []}
    for _ in range(runs):
        for arm, results in arms.items():
            output = scratch / "run"
            shutil.copytree(prepared, output)
            if arm == "loop":
                ran = measured("loop", output=str(output), skip=WORKERS)
            else:
                ran = measured("units", output=str(output), engine=arm, workers=WORKERS)
            results.append(ran.figures)
            shutil.rmtree(output)
    if len({(figures["rows"], figures["bytes"]) for results in arms.values() for figures in results}) != 1:
        raise SystemExit(f"the arms did not write the same rows and bytes: {arms}")
    fingerprints = {figures["fingerprint"] for arm in ("local", "ray") for figures in arms[arm]}
    if len(fingerprints) != 1:
        raise SystemExit(f"the engines did not write the same dataset: {fingerprints}")
    loop = arms.pop("loop")
    yield Row("throughput", "images a run", loop[0]["rows"])
    yield Row("throughput", "bytes of shards, the same for all", loop[0]["bytes"], "B")
    for arm, results in arms.items():
        cpu = statistics.median(one["cpu"] / base["cpu"] for base, one in zip(loop, results, strict=True))
        speed_up = min(one["wall"] for one in loop) / min(one["wall"] for one in results)
        target = ("<= 1.25", ">= 1.5") if arm == "ray" else ("", "")
        yield Row("throughput", f"{arm}, {WORKERS} workers: CPU time to the plain loop", round(cpu, 3), "x", target[0])
        yield Row("throughput", f"{arm}, {WORKERS} workers: speed-up", round(speed_up, 2), "x", target[1])
    yield from peer(prepared, tokenizer, images, count, loop)


def peer(prepared: Path, tokenizer: str, images: Path, count: int, loop: list[dict[str, float]]) -> Iterator[Row]:
    """A long run of the peer less a short one, so that its start-up does not count either, against the plain loop."""
    short, long = (
        measured("peer", output=str(prepared), tokenizer=tokenizer, folder=str(images), workers=WORKERS, count=number)
        for number in (count // 11, count)
    )
    rows = long.figures["rows"] - short.figures["rows"]
    cpu = (long.cpu - short.cpu) / rows / statistics.median(one["cpu"] / one["rows"] for one in loop)
    wall = (long.figures["wall"] - short.figures["wall"]) / rows
    wall /= min(one["wall"] / one["rows"] for one in loop)
    yield Row("throughput", f"Ray Data, {WORKERS} workers: CPU time to the plain loop", round(cpu, 3), "x")
    yield Row("throughput", f"Ray Data, {WORKERS} workers: speed-up", round(1 / wall, 2), "x")


def memory(options: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    few, many = (200, 2000) if options.quick else (2000, 20_000)
    images = small_images(scratch, 64, 100)
    folders = {count: linked(images, scratch / f"images-{count}", count) for count in (few, many)}
    for engine in ("local", "ray"):
        peaks = {
            count: measured("whole", job=job(folder, scratch / f"{engine}-{count}", 512, engine)).peaks
            for count, folder in folders.items()
        }
        for role in ("driver", "worker"):
            for count in (few, many):
                yield Row("memory", f"{engine}: {role}, {count} inputs", round(peaks[count][role]), "MiB")
            growth = round(peaks[many][role] - peaks[few][role])
            yield Row("memory", f"{engine}: {role}, growth", growth, "MiB", "none")


def unit(options: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    count = 512 if options.quick else 4096
    images = linked(real_images(options.images, scratch), scratch / "images", count + 1)
    prepared = scratch / "prepared"
    measured("prepare", job=job(images, prepared, count, size=256, fit="resize"))
    ran = measured("units", output=str(prepared), engine="ray", workers=1)
    yield Row("unit", "pixels of the unit, decoded", round(count * 256 * 256 * 3 / 1e6), "MB")
    yield Row("unit", "actor", round(ran.peaks["worker"]), "MiB", "<= 1144")
    yield Row("unit", "object store in use", round(ran.peaks["raylet shared"]), "MiB")
    yield Row("unit", "spills", ran.figures["spills"], "", "0")


def overhead(options: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    count = 200 if options.quick else 2000
    images = linked(small_images(scratch, 8, 10), scratch / "images", count + WORKERS)
    prepared = scratch / "prepared"
    measured("prepare", job=job(images, prepared, 1))
    figures = measured("units", output=str(prepared), engine="ray", workers=WORKERS).figures
    yield Row("overhead", "units", figures["units"])
    yield Row("overhead", "driver CPU a unit", round(1000 * figures["driver_cpu"] / count, 2), "ms", "<= 3")
    yield Row("overhead", "CPU of all processes a unit", round(1000 * figures["cpu"] / count, 2), "ms")
    yield Row("overhead", "driver growth", round(figures["driver_growth"], 1), "MiB", "<= 20")


def plan(options: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    rows = 100_000 if options.quick else 10_000_000
    table = long_table(scratch / "long.parquet", rows)
    ran = measured("whole", job=job(table, scratch / "out", 4096), dry_run=True)
    yield Row("plan", "inputs planned", ran.figures["num_inputs"])
    yield Row("plan", "driver", round(ran.peaks["driver"]), "MiB", "<= 477")
    yield Row("plan", "rows a second", round(rows / ran.figures["seconds"]))


PARTS = {"throughput": throughput, "memory": memory, "unit": unit, "overhead": overhead, "plan": plan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="real images for throughput and unit")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, once: to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    rows: list[Row] = []
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="tokenshard-") as scratch:
            for row in PARTS[name](options, Path(scratch)):
                rows.append(row)
                target = f"(target {row.target})" if row.target else ""
                print(f"{row.part:11} {row.what:48} {row.value:>14} {row.unit:4} {target}", flush=True)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")
    if options.json:
        result = {"load": os.getloadavg(), "cores": os.cpu_count(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
