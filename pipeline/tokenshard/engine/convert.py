"""A conversion job from end to end: plan, pilot, units, manifest.

Each step is skipped when its result is there already, so running the same command again is how a job is resumed, and
running it once more does nothing.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.codecs.choose import load_codec
from tokenshard.codecs.extension import check_same_package
from tokenshard.engine.claim import Mode, bind, place_of
from tokenshard.engine.driver import Lease
from tokenshard.engine.encoding import appended_numerics, check_job, encoding_of
from tokenshard.engine.finalize import check_columns, check_layout, finalize
from tokenshard.engine.job_folder import JobFolder, Journal, PilotResult, Plan, Receipt
from tokenshard.engine.metrics import JobMetrics, RayMeter, on_cluster
from tokenshard.engine.pilot import PILOT, sample_size
from tokenshard.engine.plan import NothingNew, UnitPlace, make_plan, unit_places
from tokenshard.engine.progress import Progress
from tokenshard.engine.scheduler import Scheduler
from tokenshard.engine.task import Done, Executor, WorkerAddress
from tokenshard.errors import FormatError, SpecError
from tokenshard.parquet import open_parquet
from tokenshard.scratch import scratch_folder
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.deleted import deleted_rows
from tokenshard.shards.drift import alarms
from tokenshard.shards.keys import KeySet
from tokenshard.shards.manifest import list_versions, read_manifest
from tokenshard.shards.rejects import read_rejects
from tokenshard.sources.registry import open_source
from tokenshard.spec.conversion import ConvertJob
from tokenshard.spec.manifest import Manifest
from tokenshard.store import Store

LARGE_INPUT = 20_000
"""Inputs above which `--engine auto` uses Ray, unless they are one unit."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did, and the dataset that it left."""

    output: str
    num_samples: int
    """of the dataset, with those that were there before"""
    num_rejects: int
    """of the dataset, too"""
    num_units: int
    """of this job's plan"""
    num_inputs: int
    """of this job's plan"""
    raw_bytes: int
    """of all inputs of the dataset, as they were read"""
    token_bytes: int
    """of all shards of the dataset"""
    seconds: float
    """wall time of this call"""
    fingerprint: str
    """of the dataset; empty after a dry run"""
    engine: str
    """`local` or `ray`; `none` where nothing was left to do"""
    reasons: Mapping[str, int]
    """rejected inputs of this job by `stage: error type`, the most frequent first"""
    deaths: Mapping[str, int] = field(default_factory=dict)
    """workers that this job lost while they ran a unit, by cause: `WorkerDied`, `OutOfMemory`, `TimedOut`"""
    warnings: tuple[str, ...] = ()
    """of shards whose page vectors are unlike those that the codebook was trained on"""

    def json(self) -> dict[str, Any]:
        """The same as `convert --json` prints."""
        return asdict(self)


def run_conversion(
    spec: ConvertJob, mode: Mode | None = None, progress: Progress | None = None, metrics: JobMetrics | None = None
) -> Conversion:
    """Run or resume a job; finished units are never lost. Of two drivers of one output the second ends with a JobError.

    Raises SpecError, StoreError, FormatError, JobError and TooManyRejects: see :func:`tokenshard.run`.
    """
    mode, progress = mode or Mode(), progress or Progress.silent()
    started = time.monotonic()
    if mode.dry_run:
        return _dry_run(spec, progress, started)
    check_job(spec)
    output = Store(spec.output, spec.storage)
    with progress:
        parent, folder = place_of(spec, mode, output, progress)
        if parent is not None and parent.version == folder.version:
            bind(spec, folder, mode)
            return _summary(spec, folder, parent, started, "none")
        with _left_as_found(folder, parent), Lease.take(folder, progress) as lease:
            if folder.version in list_versions(output):  # while the lease of its driver was waited for
                return _summary(spec, folder, read_manifest(output, folder.version), started, "none")
            bind(spec, folder, mode)
            job = _Job(spec, mode, folder, parent, progress, lease, metrics or JobMetrics(spec.output))
            if (plan := job.plan()) is None:
                assert parent is not None
                progress.note("nothing new: the dataset has all inputs already")
                return _summary(spec, folder, parent, started, "none")
            engine = job.run_units(plan)
            manifest = finalize(folder, parent)
            return replace(
                _summary(spec, folder, manifest, started, engine), warnings=_warnings(output, parent, manifest)
            )


@contextmanager
def _left_as_found(folder: JobFolder, parent: Manifest | None) -> Iterator[None]:
    """A new job that cannot be planned, or not be appended to ``parent``, leaves nothing behind."""
    new = folder.spec() is None
    try:
        yield
    except (SpecError, FormatError):
        if new and (folder.plan() is None or (parent is not None and folder.pilot() is None)):
            folder.remove()
        raise


def _warnings(output: Store, parent: Manifest | None, manifest: Manifest) -> tuple[str, ...]:
    """What is unusual about the shards that were added to ``parent``."""
    known = {shard.path for shard in parent.shards} if parent is not None else set()
    new = [number for number, shard in enumerate(manifest.shards) if shard.path not in known]
    return tuple(alarms(Dataset(output, manifest), new))


def _dry_run(spec: ConvertJob, progress: Progress, started: float) -> Conversion:
    """Plan in a scratch folder, to see what there is; the output is not touched."""
    with progress, scratch_folder() as scratch:
        folder = JobFolder(Store(scratch), 1)
        progress.start("planning", None)
        make_plan(spec, open_source(spec), folder, advance=progress.advance)
        return _summary(spec, folder, None, started, "none")


@dataclass(frozen=True)
class _Job:
    """The steps of a job, for the driver that holds its lease."""

    spec: ConvertJob
    mode: Mode
    folder: JobFolder
    parent: Manifest | None
    progress: Progress
    lease: Lease
    metrics: JobMetrics

    def plan(self) -> Plan | None:
        """The job's plan; None when there is nothing to append."""
        spec, folder, parent = self.spec, self.folder, self.parent
        if (plan := folder.plan()) is not None:
            return plan
        self.progress.start("planning", None)
        known = retried = None
        if parent is not None and self.mode.retry:
            rejected = read_rejects(folder.output, parent)
            retried = dict(zip(rejected.column("key").to_pylist(), rejected.column("uri").to_pylist(), strict=True))
            if not retried:
                return None
        elif parent is not None:
            known = _known_keys(folder.output, parent)
        try:
            return make_plan(spec, open_source(spec), folder, known, retried, self.progress.advance)
        except NothingNew:
            return None

    def run_units(self, plan: Plan) -> str:
        """Pilot and units on the chosen engine; its name."""
        spec, folder, parent = self.spec, self.folder, self.parent
        done = folder.finished_units()
        self.metrics.planned(plan.units)
        if len(done) == plan.units and folder.pilot() is not None:
            return "none"
        if parent is not None and folder.pilot() is None:
            folder.create_pilot(_adopted(spec, plan, parent, folder.output))
        engine = _engine(spec, plan)
        with _executors(spec, engine, self.metrics) as executor_for:
            address = WorkerAddress(spec.output, folder.version, dict(spec.storage))
            if folder.pilot() is None:
                self.progress.start("pilot", None)
                executor = executor_for(replace(address, role="pilot"), 1)
                rows = sample_size(spec, plan)
                self._schedule(executor, [PILOT], lambda place: rows, lambda receipt, done: None)
            before = sum(receipt.rows + receipt.rejected for receipt in folder.receipts()) if done else 0
            self.progress.start("converting", plan.inputs, before)
            places = (place for place in unit_places(plan) if place.unit not in done)
            executor = executor_for(address, plan.units - len(done))
            self._schedule(executor, places, _rows_of(folder), self._committed, any_done=bool(done))
        return engine

    def _committed(self, receipt: Receipt, done: Done) -> None:
        self.progress.unit(receipt, done)
        self.metrics.unit(receipt, done)

    def _schedule(
        self,
        executor: Executor,
        places: Iterable[UnitPlace],
        rows_of: Callable[[UnitPlace], int],
        on_receipt: Callable[[Receipt, Done], None],
        any_done: bool = False,
    ) -> None:
        journal = Journal(self.folder, self.metrics.event)
        try:
            with _interruptible() as interrupted:

                def stopping() -> bool:
                    self.lease.check()
                    return interrupted()

                Scheduler(
                    executor,
                    places,
                    journal,
                    self.spec.retry,
                    rows_of,
                    on_receipt,
                    stopping,
                    any_done,
                    self.metrics.pool,
                ).run()
        finally:
            executor.close()


def _known_keys(output: Store, parent: Manifest) -> KeySet:
    """Keys of all samples and rejects of a dataset. Those of samples that were deleted may come again."""
    keys = KeySet()
    for path, gone in (
        *((shard.path, deleted_rows(shard)) for shard in parent.shards),
        *((rejects.path, np.zeros(rejects.rows, np.bool_)) for rejects in parent.rejects),
    ):
        with output.open(path) as file:
            for batch in open_parquet(file).iter_batches(columns=["key"], use_threads=False):
                live, gone = ~gone[: batch.num_rows], gone[batch.num_rows :]
                keys.add(batch.column("key").filter(pa.array(live)).to_pylist())
    return keys


ExecutorFor = Callable[[WorkerAddress, int], Executor]
"""(address, most workers it can use) -> executor."""


@contextmanager
def _executors(spec: ConvertJob, engine: str, metrics: JobMetrics) -> Iterator[ExecutorFor]:
    """How to get executors of an engine; joins or starts Ray meanwhile, where that is the engine."""
    wanted = spec.engine.workers
    if engine == "ray":
        import ray

        from tokenshard.engine import ray as on_ray

        started = on_ray.connect(spec.engine)
        if on_cluster(spec.engine):
            metrics.attach(RayMeter())
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
    return "ray" if on_cluster(spec.engine) or large else "local"


def _adopted(spec: ConvertJob, plan: Plan, parent: Manifest, output: Store) -> PilotResult:
    """Tokenizer and codecs of the dataset that is appended to: they are frozen with it.

    Raises SpecError where the job's samples do not fit them, or another version of a codec's package is installed.
    """
    for codec in parent.code.columns:
        if codec.package is not None:
            model = output.read(parent.model_path(codec.model)) if codec.model else None
            check_same_package(load_codec(codec, model), codec)
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
        deaths=Journal(folder).deaths if manifest is not None else {},
    )
