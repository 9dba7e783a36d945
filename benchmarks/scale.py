"""What grows with the size of a job, and what does not: planning, the driver, the manifest.

    python benchmarks/scale.py [driver finish manifest] [--inputs N] [--units N] [--shards N] [--quick] [--json FILE]

* driver: a job over N synthetic inputs (names and sizes that a listing would give; nothing is fetched or decoded): the
  real planner, scheduler, receipts and manifest, with workers that finish a unit at once. Peak memory of the process
  for 10,000 inputs and for N (the same settings); inputs planned a second; driver CPU a unit.
* finish: the last step of a job of N units, from their receipts on disk to the manifest: CPU, and memory that it takes
  over that of a tenth of them (of the difference, what stays is the shard list: the receipts are read one by one).
* manifest: a dataset of N shards whose entries are what a writer would report (four row groups a shard): size of its
  manifest, CPU and wall time to open it, memory that opening takes, CPU of one look-up by key.

Each measurement is a process of its own. Memory is the peak resident size that the kernel reports; "growth" is over
the same process before the step. CPU time is what counts on a shared machine; wall time is given beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FEW = 10_000
"""Inputs of the job that the large one is compared with."""
GROUPS, GROUP_ROWS, TOKENS = 4, 4096, 256


def peak() -> float:
    """Peak resident MB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# -- the driver -------------------------------------------------------------------------------------------------------


def driver(inputs: int, samples: int, folder: str) -> dict[str, Any]:
    """One job from listing to manifest, in this process."""
    from tokenshard.engine.finalize import finalize
    from tokenshard.engine.job_folder import JobFolder, Journal, Receipt
    from tokenshard.engine.plan import make_plan, unit_places
    from tokenshard.engine.scheduler import Scheduler
    from tokenshard.engine.task import Done, Event, Finished, Ready, Task
    from tokenshard.sources.images.files import Files
    from tokenshard.sources.images.folder import FolderSource
    from tokenshard.spec.job import parse_job
    from tokenshard.store import Entry, Store

    class Listed(Store):
        """A bucket whose listing is made up."""

        def list(self, prefix: str = "", skipped: object = None) -> Iterator[Entry]:
            for number in range(inputs):
                yield Entry(f"train/n{number // 1000:08d}/{number:010d}.jpg", 90_000 + number % 20_000)

    class AtOnce:
        """Workers that finish what they are given, and write the receipt that a worker writes."""

        size = 16

        def __init__(self, folder: JobFolder, rows: Callable[[int], int]) -> None:
            self._folder, self._rows = folder, rows
            self._spawned, self._events = 0, deque[Event]()

        def spawn(self) -> int:
            self._spawned += 1
            self._events.append(Ready(self._spawned))
            return self._spawned

        def submit(self, worker: int, task: Task) -> None:
            unit, rows = task.place.unit, self._rows(task.place.unit)
            receipt = Receipt(unit=unit, rows=rows, rejected=0, raw_bytes=rows, shard=shard_entry(unit, rows))
            self._folder.create_receipt(receipt)
            self._events.append(Finished(worker, Done(receipt, 0.0)))

        def wait(self, timeout: float) -> list[Event]:
            events = list(self._events)
            self._events.clear()
            return events

        def kill(self, worker: int) -> None: ...
        def close(self) -> None: ...

    spec = parse_job(
        json.dumps(
            {
                "kind": "convert-images",
                "source": {"path": "s3://listed/images", "labels": "none"},
                "output": folder,
                "unit": {"samples": samples, "bytes": 1 << 50},
            }
        )
    )
    job = JobFolder(Store(folder), 1)
    job.write_spec(spec)
    source = FolderSource(spec.source, Files(Listed("s3://listed/images"), "folder"))
    started, cpu = time.monotonic(), time.process_time()
    plan = make_plan(spec, source, job)
    planned, plan_cpu = time.monotonic() - started, time.process_time() - cpu
    job.create_pilot(pilot_result())
    executor = AtOnce(job, lambda unit: min(samples, inputs - unit * samples))
    cpu = time.process_time()
    Scheduler(executor, unit_places(plan), Journal(job), spec.retry, lambda place: samples, lambda *_: None).run()
    unit_cpu = (time.process_time() - cpu) / plan.units
    cpu = time.process_time()
    manifest = finalize(job, None)
    return {
        "inputs": plan.inputs,
        "units": plan.units,
        "plan_seconds": planned,
        "plan_cpu": plan_cpu,
        "plan_bytes": sum(entry.size for entry in Store(folder).list("_job") if "plan-" in entry.name),
        "unit_cpu": unit_cpu,
        "finalize_cpu": time.process_time() - cpu,
        "samples": manifest.totals.samples,
        "peak_mb": peak(),
    }


def pilot_result() -> Any:
    """What a pilot would have found."""
    from tokenshard.engine.job_folder import PilotResult
    from tokenshard.sources.base import CodeLayout
    from tokenshard.spec.codec import CodecSpec
    from tokenshard.spec.manifest import LevelEntry

    return PilotResult(
        tokenizer="0" * 16,
        numerics="fp32",
        levels=(LevelEntry(alphabet=4096, used=4096),),
        codecs=(CodecSpec(column="codes", codec="pack", alphabet=4096),),
        layout=CodeLayout((4096,), (16, 16), kind="image"),
    )


# -- the last step ----------------------------------------------------------------------------------------------------


def finish(units: int, folder: str) -> dict[str, Any]:
    """Receipts to manifest, in this process."""
    import pyarrow as pa

    from tokenshard.engine.finalize import finalize
    from tokenshard.engine.job_folder import JobFolder, Plan, Receipt
    from tokenshard.spec.job import parse_job
    from tokenshard.store import Store

    rows = GROUPS * GROUP_ROWS
    job = JobFolder(Store(folder), 1)
    spec = {"kind": "convert-images", "source": {"path": "s3://listed/images", "labels": "none"}, "output": folder}
    job.write_spec(parse_job(json.dumps(spec)))
    job.create_plan(
        Plan(
            sha256="0" * 64,
            inputs=units * rows,
            units=units,
            raw_bytes=units * rows,
            parts=(),
            columns=(),
            source_names=(),
            schema_hex=pa.schema([]).serialize().to_pybytes().hex(),
        )
    )
    job.create_pilot(pilot_result())
    receipts = Path(folder, job.name("receipts"))
    receipts.mkdir()
    for unit in range(units):
        receipt = Receipt(unit=unit, rows=rows, rejected=0, raw_bytes=rows, shard=shard_entry(unit))
        (receipts / f"{unit:08d}.json").write_text(receipt.model_dump_json(indent=1))
    before, cpu = peak(), time.process_time()
    manifest = finalize(job, None)
    return {"samples": manifest.num_samples, "cpu": time.process_time() - cpu, "growth_mb": peak() - before}


# -- the manifest -----------------------------------------------------------------------------------------------------


def shard_entry(number: int, rows: int = GROUPS * GROUP_ROWS) -> Any:
    """What a writer would report of a shard: 256 ids of 12 bits a row, row groups of at most 4,096 rows."""
    from tokenshard.spec.manifest import ChunkEntry, RowGroupEntry, ShardEntry

    name = hashlib.sha256(str(number).encode()).hexdigest()
    position, groups = 4, []
    for first in range(0, rows, GROUP_ROWS):
        here, hashes = min(GROUP_ROWS, rows - first), hashlib.sha256(f"{number} {first}".encode()).hexdigest()
        sizes = ChunkEntry(offset=position + 31, length=2 * here + 90, xxh64=hashes[:16])
        codes = ChunkEntry(offset=sizes.offset + sizes.length + 40, length=here * 384, xxh64=hashes[16:32])
        groups.append(RowGroupEntry(rows=here, sizes=sizes, codes=(codes,)))
        position = codes.offset + codes.length
    footer = ChunkEntry(offset=position, length=4_900, xxh64=name[:16])
    return ShardEntry(
        path=f"data/0a1b2c3d-{number:08d}.parquet",
        rows=rows,
        ids=rows * TOKENS,
        bytes=position + 4_900,
        raw_bytes=rows,
        sha256=name,
        min_key=f"train/n{number:08d}/0000000000.jpg",
        max_key=f"train/n{number:08d}/9999999999.jpg",
        grid=(16, 16),
        footer=footer,
        row_groups=tuple(groups),
    )


def commit(shards: int, folder: str) -> dict[str, Any]:
    """Commit a dataset of so many shards."""
    from tokenshard.shards.manifest import commit_manifest
    from tokenshard.shards.shard_list import ShardList, numbers
    from tokenshard.spec.codec import CodecSpec
    from tokenshard.spec.manifest import (
        CodeEntry,
        ColumnEntry,
        JobEntry,
        LevelEntry,
        Manifest,
        TokenizerEntry,
        Totals,
    )
    from tokenshard.store import Store

    listed = ShardList.of(map(shard_entry, range(shards)))
    sums = {name: sum(numbers(listed, name)) for name in ("rows", "ids", "bytes", "raw_bytes")}
    before, cpu = peak(), time.process_time()
    commit_manifest(
        Store(folder),
        Manifest(
            version=1,
            kind="image",
            totals=Totals(
                samples=sums["rows"],
                ids=sums["ids"],
                raw_bytes=sums["raw_bytes"],
                token_bytes=sums["bytes"],
                rejects=0,
            ),
            code=CodeEntry(
                levels=(LevelEntry(alphabet=4096, used=4096),),
                grid=(16, 16),
                columns=(CodecSpec(column="codes", codec="pack", alphabet=4096),),
            ),
            tokenizer=TokenizerEntry(fingerprint="0" * 16, numerics="fp32"),
            columns=(ColumnEntry(name="key", type="string", role="key"),),
            jobs=(
                JobEntry(id="0a1b2c3d", spec_sha256="0" * 64, plan_sha256="0" * 64, units=shards, inputs=sums["rows"]),
            ),
            shards=listed,
        ),
    )
    size = sum(entry.size for entry in Store(folder).list("manifest"))
    return {"commit_cpu": time.process_time() - cpu, "commit_growth_mb": peak() - before, "manifest_bytes": size}


def open_it(folder: str) -> dict[str, Any]:
    """Open that dataset, in a process that has done nothing else."""
    from tokenshard.shards.dataset import open_dataset
    from tokenshard.shards.shard_list import holding

    before, started, cpu = peak(), time.monotonic(), time.process_time()
    dataset = open_dataset(folder)
    seconds, open_cpu = time.monotonic() - started, time.process_time() - cpu
    growth, cpu = peak() - before, time.process_time()
    shards = dataset.manifest.shards
    number = len(shards) // 3
    found = holding(shards, f"train/n{number:08d}/0000004711.jpg")
    if found != [number] or shards[number] != shard_entry(number):
        raise SystemExit(f"the key of shard {number} was found in {found}")
    lookup = time.process_time() - cpu
    return {
        "samples": len(dataset),
        "open_seconds": seconds,
        "open_cpu": open_cpu,
        "growth_mb": growth,
        "peak_mb": peak(),
        "lookup_cpu": lookup,
    }


# -- measuring --------------------------------------------------------------------------------------------------------

STEPS = {"driver": driver, "finish": finish, "commit": commit, "open": open_it}


def measured(step: str, *arguments: object) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{step} {arguments}: ended with exit code {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measure_driver(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, float, str, str]]:
    few, many = (
        measured("driver", count, options.samples, str(scratch / str(count))) for count in (FEW, options.inputs)
    )
    for ran in (few, many):
        if ran["samples"] != ran["inputs"]:
            raise SystemExit(f"{ran['inputs']} inputs became {ran['samples']} samples")
    yield "inputs", many["inputs"], "", ""
    yield "units", many["units"], "", ""
    yield "planned", many["inputs"] / many["plan_seconds"], "inputs/s", ">= 20000"
    yield "planned, by CPU time", many["inputs"] / many["plan_cpu"], "inputs/s", ""
    yield "plan on disk", many["plan_bytes"] / many["inputs"], "bytes/input", ""
    yield "driver CPU a unit, with its receipt", 1e3 * many["unit_cpu"], "ms", "<= 3"
    yield "last step (manifest), CPU a unit", 1e3 * many["finalize_cpu"] / many["units"], "ms", ""
    yield f"peak memory, {few['inputs']} inputs", few["peak_mb"], "MB", ""
    yield f"peak memory, {many['inputs']} inputs", many["peak_mb"], "MB", ""
    yield "peak memory, ratio", many["peak_mb"] / few["peak_mb"], "", "<= 1.2"


def measure_finish(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, float, str, str]]:
    few, many = (
        measured("finish", count, str(scratch / f"finish{count}")) for count in (options.units // 10, options.units)
    )
    yield "units", options.units, "", ""
    yield "last step, CPU a unit", 1e3 * many["cpu"] / options.units, "ms", ""
    yield "last step, memory", many["growth_mb"], "MB", ""
    more = options.units - options.units // 10
    yield "of it for each further unit", 1e3 * (many["growth_mb"] - few["growth_mb"]) / more, "kB", ""


def measure_manifest(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, float, str, str]]:
    folder = str(scratch / "manifest")
    written, opened = measured("commit", options.shards, folder), measured("open", folder)
    yield "shards", options.shards, "", ""
    yield "samples", opened["samples"], "", ""
    yield "manifest", written["manifest_bytes"] / 1e6, "MB", ""
    yield "commit, CPU", written["commit_cpu"], "s", ""
    yield "commit, memory over the entries", written["commit_growth_mb"], "MB", ""
    yield "open, wall", opened["open_seconds"], "s", "<= 2"
    yield "open, CPU", opened["open_cpu"], "s", "<= 2"
    yield "open, memory", opened["growth_mb"], "MB", "<= 200"
    yield "look-up by key, CPU", 1e3 * opened["lookup_cpu"], "ms", ""


PARTS = {"driver": measure_driver, "finish": measure_finish, "manifest": measure_manifest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=4096, help="inputs of a unit")
    parser.add_argument("--units", type=int, default=20_000, help="of the job whose last step is measured")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step[0]](*json.loads(options.step[1]))))
        return
    if options.quick:
        options.inputs, options.shards, options.units = (
            count // 100 for count in (options.inputs, options.shards, options.units)
        )
    scratch = Path(tempfile.mkdtemp(prefix="tokenshard-scale-"))
    rows = []
    try:
        for part in options.parts or PARTS:
            for what, value, unit, target in PARTS[part](options, scratch):
                rows.append({"part": part, "what": what, "value": value, "unit": unit, "target": target})
                print(f"{part:9} {what:36} {value:>16,.3f} {unit:12} {target}", flush=True)
    finally:
        shutil.rmtree(scratch)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
