"""What a job would do: its plan, and bytes and time from a sample of the planned inputs. Writes nothing but scratch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.engine.encoding import check_job
from tokenshard.engine.job_folder import JobFolder, Plan, PlanPart
from tokenshard.engine.local import cpu_slots
from tokenshard.engine.pilot import PILOT, PilotRunner, unit_sizes
from tokenshard.engine.plan import UnitPlace, make_plan, read_unit, unit_places
from tokenshard.engine.progress import Progress
from tokenshard.engine.task import Task
from tokenshard.engine.unit import UnitRunner
from tokenshard.scratch import scratch_folder
from tokenshard.sources.registry import open_source
from tokenshard.spec.conversion import ConvertJob
from tokenshard.store import Store

SAMPLE = 64
"""Inputs that are converted to learn bytes and seconds from."""


@dataclass(frozen=True)
class Estimate:
    """``stage_seconds``: of one worker like the one of this machine; ``seconds``: of ``workers`` of them side by side.

    ``token_bytes`` is None where no sampled input could be converted.
    """

    num_inputs: int
    num_units: int
    raw_bytes: int
    sampled: int
    sampled_rejects: int
    token_bytes: int | None
    stage_seconds: Mapping[str, float]
    workers: int
    seconds: float | None

    def json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(spec: ConvertJob, progress: Progress | None = None) -> Estimate:
    """Plan in a scratch folder, fit tokenizer and codec on a sample there, and convert the sample.

    Raises SpecError for what the job itself would refuse, and JobError where no sampled input can be read.
    """
    check_job(spec)
    progress = progress or Progress.silent()
    with progress, scratch_folder() as scratch:
        output = Store(scratch)
        progress.start("planning", None)
        plan = make_plan(spec, open_source(spec), JobFolder(output, 1), advance=progress.advance)
        progress.start("sampling", None)
        folder, place = _sample(spec, plan, output)
        PilotRunner(folder).run(Task(PILOT))
        runner = UnitRunner(folder)
        receipt = runner.run(Task(place))
        assert receipt is not None
        sampled = receipt.rows + receipt.rejected
        stages = {stage: seconds / sampled * plan.inputs for stage, seconds in runner.stages.seconds.items()}
        workers = max(1, cpu_slots() if spec.engine.workers is None else spec.engine.workers)
        return Estimate(
            num_inputs=plan.inputs,
            num_units=plan.units,
            raw_bytes=plan.raw_bytes,
            sampled=sampled,
            sampled_rejects=receipt.rejected,
            token_bytes=round(receipt.shard.bytes / sampled * plan.inputs) if receipt.shard is not None else None,
            stage_seconds=stages,
            workers=min(workers, plan.units),
            seconds=sum(stages.values()) / min(workers, plan.units),
        )


def _sample(spec: ConvertJob, plan: Plan, output: Store) -> tuple[JobFolder, UnitPlace]:
    """A second job in the scratch folder, whose only unit holds inputs from all over the plan."""
    chosen = np.unique(np.linspace(0, plan.inputs - 1, SAMPLE).round().astype(np.int64))
    pieces, first = [], 0
    for place, size in zip(unit_places(plan), unit_sizes(plan, output), strict=True):
        mine = chosen[(chosen >= first) & (chosen < first + size)] - first
        first += size
        if len(mine):
            pieces.append(read_unit(output, place).take(mine))
    rows = pa.concat_tables(pieces)
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=rows.num_rows)
    folder = JobFolder(output, 2)
    path = folder.name("plan-00000.parquet")
    output.put(path, buffer.getvalue())
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    part = PlanPart(path=path, units=1, inputs=rows.num_rows, sha256=sha256)
    folder.write_spec(spec.model_copy(update={"output": output.root, "storage": {}}))
    folder.create_plan(
        plan.model_copy(update={"sha256": sha256, "inputs": rows.num_rows, "units": 1, "parts": (part,)})
    )
    return folder, UnitPlace(0, path, 0)
