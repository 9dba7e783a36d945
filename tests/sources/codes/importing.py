"""Imports by the real engine, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenshard.api import TokenDataset, open_dataset, run
from tokenshard.spec.job import Import, build_job


def imported(source: Path | str, format: str, out: Path, *, max_rejects: float = 0, **options: Any) -> TokenDataset:
    """The dataset that an import of ``source`` makes at ``out``; ``options`` of the source."""
    job = {"source": {"path": str(source), "format": format, **options}, "output": str(out), "max_rejects": max_rejects}
    run(build_job(Import, {**job, "engine": {"kind": "local", "workers": 0}, "unit": {"samples": 16}}))
    return open_dataset(str(out))
