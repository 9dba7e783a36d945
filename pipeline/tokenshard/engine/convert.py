"""A conversion job from end to end: plan, pilot, units, manifest.

Each step is skipped when its result is there already, so running the same command again is how a job is resumed, and
running it once more does nothing.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.engine.encoding import appended_numerics, check_job, encoding_of
from tokenshard.engine.finalize import check_appendable, check_columns, check_layout, check_numerics, finalize
from tokenshard.engine.job_folder import JobFolder, Journal, PilotResult, Plan, Receipt
from tokenshard.engine.pilot import PILOT, sample_size
from tokenshard.engine.plan import UnitPlace, make_plan, unit_places
from tokenshard.engine.progress import Progress
from tokenshard.engine.scheduler import Scheduler
from tokenshard.engine.task import Executor, WorkerAddress
from tokenshard.errors import SpecError
from tokenshard.shards.deleted import deleted_rows
from tokenshard.shards.keys import KeySet
from tokenshard.shards.manifest import list_versions, read_manifest
from tokenshard.shards.rejects import read_rejects
from tokenshard.sources.registry import open_source
from tokenshard.spec.job import ConvertJob, TokenizeJob
from tokenshard.spec.manifest import SIDECARS, Manifest
from tokenshard.store import Store

LARGE_INPUT = 20_000
"""Inputs above which `--engine auto` uses Ray, unless they are one unit."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did. ``fingerprint`` is empty after a dry run."""

    output: str
    num_samples: int
    num_rejects: int
    num_units: int
    num_inputs: int
    raw_bytes: int
    token_bytes: int
    seconds: float
    fingerprint: str
    engine: str
    reasons: Mapping[str, int]

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Mode:
    """How to treat what is in the output already."""

    resume: bool = True
    append: bool = False
    overwrite: bool = False
    retry: bool = False
    """convert the dataset's rejects again"""
    mix_numerics: bool = False
    """append ids of another numerics mode than the dataset's"""
    dry_run: bool = False
    """plan, and stop there"""


def run_conversion(spec: ConvertJob, mode: Mode | None = None, progress: Progress | None = None) -> Conversion:
    """Run or resume a job. Raises SpecError, StoreError, JobError, TooManyRejects; finished units are never lost."""
    mode, progress = mode or Mode(), progress or Progress.silent()
    started = time.monotonic()
    if mode.dry_run:
        return _dry_run(spec, progress, started)
    check_job(spec)
    output = Store(spec.output, spec.storage)
    parent, folder = _claim(spec, mode, output)
    if parent is not None and parent.version == folder.version:
        return _summary(spec, folder, parent, started, "none")
    with progress:
        plan = _plan(spec, mode, folder, parent, progress)
        if plan is None:
            assert parent is not None
            progress.note("nothing new: the dataset has all inputs already")
            return _summary(spec, folder, parent, started, "none")
        engine = _run_units(spec, folder, parent, plan, progress)
    return _summary(spec, folder, finalize(folder, parent), started, engine)


def _dry_run(spec: ConvertJob, progress: Progress, started: float) -> Conversion:
    """Plan in a scratch folder, to see what there is; the output is not touched."""
    with progress, tempfile.TemporaryDirectory(prefix="tokenshard-") as scratch:
        folder = JobFolder(Store(scratch), 1)
        progress.start("planning", None)
        make_plan(spec, open_source(spec), folder, advance=progress.advance)
        return _summary(spec, folder, None, started, "none")


# -- what is there already --------------------------------------------------------------------------------------------


def _claim(spec: ConvertJob, mode: Mode, output: Store) -> tuple[Manifest | None, JobFolder]:
    """The latest manifest, and the folder of the job to run (that of the manifest where the job is complete)."""
    if mode.overwrite:
        erase(output)
    parent = read_manifest(output) if list_versions(output) else None
    folder = JobFolder(output, 1 if parent is None else parent.version + 1)
    if parent is None:
        started = next(iter(output.list("_job")), None) is not None
        if not started and next(iter(output.list()), None) is not None:
            raise SpecError(f"{output.root}: is not empty and holds no token dataset; choose another output")
    elif mode.append or mode.retry:
        if isinstance(spec, TokenizeJob):
            check_appendable(parent, spec)
            if not mode.mix_numerics:
                check_numerics(parent, appended_numerics(spec, parent, output), output)
    else:
        folder = JobFolder(output, parent.version)
        if folder.spec() is None:
            raise SpecError(f"{output.root}: holds a dataset already; use --append to add to it, or --overwrite")
    _bind(spec, folder, mode)
    return parent, folder


def _bind(spec: ConvertJob, folder: JobFolder, mode: Mode) -> None:
    """Write the spec down, or check that the job in the folder is this one; until its pilot is done it may change."""
    if folder.spec() is None:
        folder.write_spec(spec)
        return
    earlier = folder.conversion()
    differing = list(_differences("", earlier.output_fields(), spec.output_fields()))
    if spec.source.path != earlier.source.path:
        differing.append(f"source.path: {earlier.source.path!r} there, {spec.source.path!r} here")
    if folder.pilot() is None:
        if differing:
            folder.forget_plan()
        folder.write_spec(spec)
        return
    if differing:
        raise SpecError(
            f"{folder.output.root}: holds another job ({'; '.join(differing)}); use the same options to resume it, "
            "another output, --append or --overwrite"
        )
    if not mode.resume:
        raise SpecError(f"{folder.output.root}: a job was started there; leave --no-resume out, or use --overwrite")
    if spec != earlier:
        folder.write_spec(spec)  # workers read how to run from there


def _differences(path: str, there: Any, here: Any) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(f"{path}.{name}" if path else name, there.get(name), here.get(name))
    elif there != here:
        yield f"{path}: {there!r} there, {here!r} here"


def erase(output: Store) -> None:
    """Remove a dataset: its manifests first, so that no reader sees a part of it. Other files are left alone."""
    names = [entry.name for entry in output.list()]
    parts = ("manifest/", "_job/", "data/", "rejects/", "tokenizer/", "models/", *(f"{folder}/" for folder in SIDECARS))
    foreign = [name for name in names if not name.startswith(parts)]
    if foreign:
        raise SpecError(
            f"{output.root}: not overwritten, it holds files that are no part of a dataset (e.g. {foreign[0]}); "
            "choose another output"
        )
    for part in parts:
        for name in names:
            if name.startswith(part):
                output.delete(name)
    output.clean_temporary()


# -- the steps --------------------------------------------------------------------------------------------------------


def _plan(spec: ConvertJob, mode: Mode, folder: JobFolder, parent: Manifest | None, progress: Progress) -> Plan | None:
    """The job's plan; None when there is nothing to append."""
    if (plan := folder.plan()) is not None:
        return plan
    progress.start("planning", None)
    known = retried = None
    if parent is not None and mode.retry:
        rejected = read_rejects(folder.output, parent)
        retried = dict(zip(rejected.column("key").to_pylist(), rejected.column("uri").to_pylist(), strict=True))
        if not retried:
            return None
    elif parent is not None:
        known = _known_keys(folder.output, parent)
    try:
        return make_plan(spec, open_source(spec), folder, known, retried, progress.advance)
    except SpecError:
        if known is not None and len(known):
            return None
        raise


def _known_keys(output: Store, parent: Manifest) -> KeySet:
    """Keys of all samples and rejects of a dataset. Those of samples that were deleted may come again."""
    keys = KeySet()
    for path, gone in (
        *((shard.path, deleted_rows(shard)) for shard in parent.shards),
        *((rejects.path, np.zeros(rejects.rows, np.bool_)) for rejects in parent.rejects),
    ):
        with output.open(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["key"]):
                live, gone = ~gone[: batch.num_rows], gone[batch.num_rows :]
                keys.add(batch.column("key").filter(pa.array(live)).to_pylist())
    return keys


def _run_units(spec: ConvertJob, folder: JobFolder, parent: Manifest | None, plan: Plan, progress: Progress) -> str:
    """Pilot and units on the chosen engine; its name."""
    done = folder.finished_units()
    if len(done) == plan.units and folder.pilot() is not None:
        return "none"
    if parent is not None and folder.pilot() is None:
        folder.create_pilot(_adopted(spec, plan, parent, folder.output))
    engine = _engine(spec, plan)
    with _executors(spec, engine) as executor_for:
        address = WorkerAddress(spec.output, folder.version, dict(spec.storage))
        if folder.pilot() is None:
            progress.start("pilot", None)
            executor = executor_for(replace(address, role="pilot"), 1)
            rows = sample_size(spec, plan)
            _schedule(spec, folder, executor, [PILOT], lambda place: rows, lambda receipt, seconds: None)
        receipts = [receipt for unit in done if (receipt := folder.receipt(unit)) is not None]
        progress.start("converting", plan.inputs, sum(receipt.rows + receipt.rejected for receipt in receipts))
        places = (place for place in unit_places(plan) if place.unit not in done)
        executor = executor_for(address, plan.units - len(done))
        _schedule(spec, folder, executor, places, _rows_of(folder), progress.unit, any_done=bool(done))
    return engine


ExecutorFor = Callable[[WorkerAddress, int], Executor]
"""(address, most workers it can use) -> executor."""


@contextmanager
def _executors(spec: ConvertJob, engine: str) -> Iterator[ExecutorFor]:
    """How to get executors of an engine; joins or starts Ray meanwhile, where that is the engine."""
    wanted = spec.engine.workers
    if engine == "ray":
        import ray

        from tokenshard.engine import ray as on_ray

        started = on_ray.connect(spec.engine)
        try:
            slots = wanted or on_ray.worker_slots(spec.engine)
            yield lambda address, most: on_ray.RayExecutor(address, spec.engine, min(slots, most))
        finally:
            if started:
                ray.shutdown()
        return
    from tokenshard.engine import local

    if wanted == 0:
        yield lambda address, most: local.InlineExecutor(address)
    else:
        slots = wanted or local.cpu_slots()
        yield lambda address, most: local.LocalExecutor(address, min(slots, most))


def _engine(spec: ConvertJob, plan: Plan) -> str:
    if spec.engine.kind != "auto":
        return spec.engine.kind
    large = plan.inputs > LARGE_INPUT and plan.units > 1
    return "ray" if spec.engine.address or os.environ.get("RAY_ADDRESS") or large else "local"


def _adopted(spec: ConvertJob, plan: Plan, parent: Manifest, output: Store) -> PilotResult:
    """Tokenizer and codecs of the dataset that is appended to: they are frozen with it."""
    layout = encoding_of(spec, open_source(spec, plan.source_state)).layout(parent.tokenizer, output)
    check_layout(parent, layout, output)
    adopted = PilotResult(
        tokenizer=parent.tokenizer.fingerprint,
        numerics=appended_numerics(spec, parent, output),
        levels=parent.code.levels,
        codecs=parent.code.columns,
        models=parent.models,
        tables=parent.tables,
        layout=layout,
    )
    check_columns(parent, plan, adopted)
    return adopted


def _rows_of(folder: JobFolder) -> Callable[[UnitPlace], int]:
    def rows_of(place: UnitPlace) -> int:
        with folder.output.open(place.part) as file:
            return int(pq.read_metadata(file).row_group(place.row_group).num_rows)

    return rows_of


def _schedule(
    spec: ConvertJob,
    folder: JobFolder,
    executor: Executor,
    places: Iterable[UnitPlace],
    rows_of: Callable[[UnitPlace], int],
    on_receipt: Callable[[Receipt, float], None],
    any_done: bool = False,
) -> None:
    try:
        with _interruptible() as stopping:
            Scheduler(executor, places, Journal(folder), spec.retry, rows_of, on_receipt, stopping, any_done).run()
    finally:
        executor.close()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """First SIGINT or SIGTERM: finish what runs. Second: now. (Signals belong to the main thread; elsewhere: never.)"""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_signal(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(spec: ConvertJob, folder: JobFolder, manifest: Manifest | None, started: float, engine: str) -> Conversion:
    plan = folder.plan()
    reasons: dict[str, int] = {}
    for receipt in folder.receipts() if manifest is not None else ():
        for reason, count in receipt.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    totals = manifest.totals if manifest is not None else None
    return Conversion(
        output=spec.output,
        num_samples=manifest.num_samples if manifest else 0,
        num_rejects=totals.rejects if totals else 0,
        num_units=plan.units if plan else 0,
        num_inputs=plan.inputs if plan else 0,
        raw_bytes=totals.raw_bytes if totals else plan.raw_bytes if plan else 0,
        token_bytes=totals.token_bytes if totals else 0,
        seconds=round(time.monotonic() - started, 3),
        fingerprint=manifest.fingerprint if manifest is not None else "",
        engine=engine,
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
    )
