"""The processes that `benchmarks/convert.py` measures: `python -m conversion.runs ROLE JSON` prints its figures.

`units` runs the units of a prepared job on an engine and `loop` the same in a plain loop; both measure after each
worker did one unit, so that start-up and the loading of compiled kernels do not count. `whole` runs a conversion from
end to end and `plan` a dry run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from conversion.processes import MIB, cpu_seconds
from tokenshard.codecs.choose import load_codec
from tokenshard.engine.convert import Mode, run_conversion
from tokenshard.engine.finalize import finalize
from tokenshard.engine.job_folder import JobFolder, Journal, Receipt
from tokenshard.engine.pilot import PILOT, PilotRunner
from tokenshard.engine.plan import UnitPlace, make_plan, read_unit, unit_places
from tokenshard.engine.scheduler import Scheduler
from tokenshard.engine.task import Done, Event, Executor, Finished, Ready, Task, WorkerAddress
from tokenshard.shards.schema import CodeColumns
from tokenshard.shards.writer import ShardWriter, TokenBatch
from tokenshard.sources.images.decode import decode_image
from tokenshard.sources.registry import open_source
from tokenshard.spec.conversion import ConvertJob
from tokenshard.spec.job import ConvertImages, build_job
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer

BATCH = 32
APPEND_ROWS = 512
THIS = psutil.Process()


def job_of(fields: dict[str, Any]) -> ConvertJob:
    job = build_job(ConvertImages, fields)
    assert isinstance(job, ConvertJob)
    return job


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Plan and pilot of a job, so that runs of its units can start from a copy of the folder."""
    spec = job_of(job)
    folder = JobFolder(Store(spec.output), 1)
    folder.write_spec(spec)
    plan = make_plan(spec, open_source(spec), folder)
    PilotRunner(folder).run(Task(PILOT))
    pilot = folder.pilot()
    assert pilot is not None
    return {"inputs": plan.inputs, "tokenizer": pilot.tokenizer}


class Clock:
    """Wall and CPU seconds and the growth of this process since it was started."""

    def start(self) -> None:
        self._rss = THIS.memory_info().rss
        self._driver = sum(THIS.cpu_times()[:2])
        self._tree = cpu_seconds(THIS)
        self._wall = time.perf_counter()

    def figures(self) -> dict[str, float]:
        return {
            "wall": time.perf_counter() - self._wall,
            "cpu": cpu_seconds(THIS) - self._tree,
            "driver_cpu": sum(THIS.cpu_times()[:2]) - self._driver,
            "driver_growth": (THIS.memory_info().rss - self._rss) / MIB,
        }


class WarmedUp:
    """An executor whose workers each run one of ``units`` before any is announced as ready; then the clock starts."""

    def __init__(self, executor: Executor, units: list[UnitPlace], clock: Clock) -> None:
        self.size = executor.size
        self.spawn, self.submit, self.kill, self.close = (
            *(executor.spawn, executor.submit),
            *(executor.kill, executor.close),
        )
        self._executor, self._units, self._clock = executor, units, clock
        self._warm: list[int] = []

    def wait(self, timeout: float) -> list[Event]:
        events = self._executor.wait(timeout)
        if len(self._warm) == self.size:
            return events
        for event in events:
            if isinstance(event, Ready):
                self._executor.submit(event.worker, Task(self._units.pop()))
            elif isinstance(event, Finished) and isinstance(event.result, Done):
                self._warm.append(event.worker)
            else:
                raise SystemExit(f"warm-up: {event}")
        if len(self._warm) < self.size:
            return []
        self._clock.start()
        return [Ready(worker) for worker in self._warm]


def run_units(output: str, engine: str, workers: int, commit: bool = True) -> dict[str, Any]:
    """Units of a prepared job by the product's scheduler and executors."""
    folder = JobFolder(Store(output), 1)
    plan, job = folder.plan(), folder.conversion()
    assert plan is not None
    spec = job.engine.model_copy(update={"kind": engine, "workers": workers})
    places = list(unit_places(plan))
    first, rest = places[:workers], places[workers:]
    session: dict[str, Any] = {}
    if engine == "ray":
        import ray

        from tokenshard.engine.ray import OBJECT_STORE_BYTES, RayExecutor

        session = ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=OBJECT_STORE_BYTES,
        ).address_info
        executor: Executor = RayExecutor(WorkerAddress(output, 1), spec, workers)
    else:
        from tokenshard.engine.local import LocalExecutor

        executor = LocalExecutor(WorkerAddress(output, 1), workers)
    clock, receipts = Clock(), list[Receipt]()
    warm = WarmedUp(executor, list(first), clock)
    scheduler = Scheduler(
        warm,
        rest,
        Journal(folder),
        job.retry,
        lambda place: read_unit(folder.output, place).num_rows,
        lambda receipt, _: receipts.append(receipt),
    )
    scheduler.run()
    figures: dict[str, Any] = {
        **clock.figures(),
        "units": len(rest),
        "rows": sum(receipt.rows for receipt in receipts),
        "bytes": sum(receipt.shard.bytes for receipt in receipts if receipt.shard),
    }
    executor.close()
    if session:
        log = Path(session["session_dir"], "logs", "raylet.out")
        figures["spills"] = log.read_text().count("Spilled ")
    if commit:
        figures["fingerprint"] = finalize(folder, None).fingerprint
    return figures


def run_loop(output: str, skip: int) -> dict[str, Any]:
    """What a script of thirty lines would do: the same units, one image after the other, in this process."""
    folder = JobFolder(Store(output), 1)
    plan, pilot, job = folder.plan(), folder.pilot(), folder.conversion()
    assert plan is not None
    assert pilot is not None
    assert isinstance(job, ConvertImages)
    tokenizer = load_tokenizer(folder.output, f"tokenizer/{pilot.tokenizer}")
    codecs = [
        load_codec(codec, folder.output.read(f"models/{codec.model}.tsm") if codec.model else None)
        for codec in pilot.codecs
    ]
    columns = CodeColumns(
        codes=pilot.codecs, grid=(None, None), extents=("height", "width"), downsample=tokenizer.spec.downsample
    )
    entry = TokenizerEntry(fingerprint=pilot.tokenizer, numerics=pilot.numerics)
    root = Path(job.source.path)

    def convert(path: Path, names: list[str]) -> tuple[int, int]:
        with ShardWriter(path, f"data/{path.name}", columns, codecs, entry) as writer:
            for top in range(0, len(names), APPEND_ROWS):
                rows = names[top : top + APPEND_ROWS]
                ids, sizes, raw = [], [], 0
                for start in range(0, len(rows), BATCH):
                    data = [(root / name).read_bytes() for name in rows[start : start + BATCH]]
                    images = [decode_image(item, job.source) for item in data]
                    raw += sum(map(len, data))
                    sizes += [image.shape[:2] for image in images]
                    ids += encoded(images)
                writer.append(TokenBatch(rows, np.array(sizes, np.int32), (np.concatenate(ids),), raw))
            shard = writer.close()
        assert shard is not None
        return shard.rows, shard.bytes

    def encoded(images: list[np.ndarray]) -> list[np.ndarray]:
        if len({image.shape for image in images}) == 1:
            return [codes.ravel() for codes in tokenizer.encode(np.stack(images))]
        return [tokenizer.encode(image[None]).ravel() for image in images]

    units = [read_unit(folder.output, place).column("uri").to_pylist() for place in unit_places(plan)]
    clock, done = Clock(), []
    with tempfile.TemporaryDirectory() as scratch:
        convert(Path(scratch, "warm-up.parquet"), units[0])
        clock.start()
        for number, names in enumerate(units[skip:]):
            done.append(convert(Path(scratch, f"{number}.parquet"), names))
        figures = clock.figures()
    rows, written = (sum(column) for column in zip(*done, strict=True))
    return {**figures, "units": len(done), "rows": rows, "bytes": written}


def run_whole(job: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
    """A conversion as `tokenshard convert` runs it, or its plan alone."""
    return run_conversion(job_of(job), Mode(dry_run=dry_run)).json()


if __name__ == "__main__":
    role, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps({"prepare": prepare, "units": run_units, "loop": run_loop, "whole": run_whole}[role](**arguments)))
