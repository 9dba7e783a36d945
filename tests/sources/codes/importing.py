"""Imports by the real engine in this process, and what a source gives without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokenshard.api import TokenDataset, open_dataset, run
from tokenshard.sources.base import CodeSource, Reject, Sample
from tokenshard.sources.codes.open import open_code_source
from tokenshard.spec.codes import ImportSourceSpec
from tokenshard.spec.job import Import, build_job


def imported(source: Path | str, format: str, out: Path, *, max_rejects: float = 0, **options: Any) -> TokenDataset:
    """The dataset that an import of ``source`` makes at ``out``; ``options`` of the source."""
    job = {"source": {"path": str(source), "format": format, **options}, "output": str(out), "max_rejects": max_rejects}
    local = {"engine": {"kind": "local", "workers": 0}, "unit": {"samples": 16}, "codec": "pack"}
    run(build_job(Import, {**job, **local}))
    return open_dataset(str(out))


def read_source(path: Path | str, format: str, **options: Any) -> tuple[CodeSource, list[Sample | Reject]]:
    """A source as a worker opens it, and all it delivers: planned in one place, read elsewhere in three units."""
    spec = ImportSourceSpec(path=str(path), format=format, **options)
    planned = open_code_source(spec, {})
    plan = pa.Table.from_batches(list(planned.plan()))
    source = open_code_source(spec, {}, json.loads(json.dumps(planned.state())))
    third = -(-plan.num_rows // 3)
    units = [plan.slice(start, third) for start in range(0, plan.num_rows, third)]
    return planned, [thunk() for unit in units for thunk in source.read(unit)]
