"""Everything a report of a dataset says, as one JSON-able value; the page and the terminal only lay it out.

Reads the manifest, some footers, and bounded samples of row groups, rejects and originals: never all codes.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.engine.driver import latest_driver
from tokenshard.engine.job_folder import JobFolder
from tokenshard.errors import FormatError, SpecError
from tokenshard.grids.dataset import GridDataset
from tokenshard.report.samples import Drawn, keys_of, originals, picture_rows, sample_numbers
from tokenshard.report.summary.codes import SampledCodes, level_figures, sampled_codes, sampled_groups
from tokenshard.report.summary.sizes import Originals, sizes
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.rejects import read_rejects_file
from tokenshard.shards.stats import headline
from tokenshard.spec.base import canonical_json

DRAWN = 8
MEASURED = 48
"""Samples that are drawn, and whose originals are measured."""
MOST_PLAN_PARTS = 64
"""Files of a plan above which originals are not looked for: each may have to be read."""
MOST_REJECTS = 20_000
MOST_VERSIONS = 20
MOST_TILES = 1_000_000
"""Tiles above which the grids of a dataset are not listed and no map is drawn."""
LARGEST_SPEC = 4_000
"""Characters of a job spec or of the description of a tokenizer that are shown."""


@dataclass(frozen=True)
class Summary:
    """Figures of a dataset, with what pictures and charts are made of."""

    figures: dict[str, Any]
    """`dataset`, `sizes`, `codes`, `rejects`, `throughput`, `provenance`, `grids` and `documents` (null for other
    kinds), `samples`, `notes`; names may be added, never renamed"""
    codes: SampledCodes
    drawn: Drawn
    dataset: Dataset


def summarize(dataset: Dataset, count: int = DRAWN) -> Summary:
    """The summary of a dataset, with ``count`` samples drawn. Raises FormatError where what it reads is damaged."""
    manifest, totals = dataset.manifest, dataset.manifest.totals
    notes: list[str] = []
    sampled = sampled_codes(dataset)
    if sampled.samples < len(dataset):
        notes.append(
            f"Use of codes and entropies: counted in {sampled.samples:,} of {len(dataset):,} samples "
            f"({sampled.ids:,} ids), spread evenly."
        )
    drawn, measured = _drawn(dataset, count, notes)
    levels = level_figures(dataset, sampled)
    size = sizes(dataset, measured)
    if size["footers_read"] < len(manifest.shards):
        notes.append(f"Bytes by column: from the footers of {size['footers_read']} of {len(manifest.shards):,} shards.")
    if size["measured_samples"]:
        notes.append(f"Pixels and JPEG: measured on {size['measured_samples']} originals, times the samples there are.")
    figures = {
        "dataset": {
            "location": dataset.store.root,
            **headline(manifest),
            "grid": list(manifest.code.grid),
            "splits": manifest.splits,
            "columns": {column.name: column.type for column in manifest.columns},
        },
        "sizes": size,
        "codes": {
            "decoded_samples": sampled.samples,
            "decoded_ids": sampled.ids,
            "bits_per_token": 8 * sum(level["stream_bytes"] for level in levels) / max(1, totals.ids),
            "file_bits_per_token": 8 * totals.token_bytes / max(1, totals.ids),
            "order0_entropy": sum(level["order0_entropy"] for level in levels) / max(1, len(levels)),
            "levels": levels,
        },
        "rejects": _rejects(dataset),
        "throughput": _throughput(dataset),
        "provenance": _provenance(dataset),
        "grids": _grids(dataset) if manifest.kind == "grid" else None,
        "documents": _documents(dataset) if manifest.kind == "document" else None,
        "samples": [{"key": sample.key, "text": sample.line, "psnr": sample.psnr} for sample in drawn.samples],
        "notes": notes,
    }
    return Summary(figures, sampled, drawn, dataset)


def _drawn(dataset: Dataset, count: int, notes: list[str]) -> tuple[Drawn, Originals]:
    """Pictures of a few samples, and what the originals of some more take; both of what is within reach."""
    measured, nothing = Originals(), Drawn([], ("", "", ""))
    if dataset.manifest.kind == "grid" or not len(dataset) or not count:
        return nothing, measured
    numbers = sample_numbers(dataset, (), count)
    keys, known = keys_of(dataset, numbers), dict[str, NDArray[Any]]()
    parts = 0
    for version in range(1, dataset.manifest.version + 1):
        plan = JobFolder(dataset.store, version).plan()
        parts += len(plan.parts) if plan is not None else 0
    if 0 < parts <= MOST_PLAN_PARTS:
        image = dataset.manifest.kind == "image"
        more = keys_of(dataset, sample_numbers(dataset, (), MEASURED)) if image else []
        for key, data in originals(dataset, list(dict.fromkeys([*keys, *more]))):
            if image and data.ndim == 3 and data.size:
                measured.add(data)
            if key in keys:
                known[key] = data
    try:
        drawn = picture_rows(dataset, numbers, known)
    except SpecError as error:  # ids made elsewhere, or a tokenizer whose package is not installed
        notes.append(f"No pictures: {error}")
        return nothing, measured
    if not known:
        notes.append("Originals are not shown: the source, or the plan in _job/, is no longer within reach.")
    return drawn, measured


def _rejects(dataset: Dataset) -> dict[str, Any]:
    """Inputs that became no samples, by stage and type of error, with one example of each."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], tuple[str, str]] = {}
    read = 0
    for entry in dataset.manifest.rejects:
        if read >= MOST_REJECTS:
            break
        for row in read_rejects_file(dataset.store, entry).to_pylist():
            reason = (row["stage"], row["error"])
            counts[reason] += 1
            examples.setdefault(reason, (row["key"], row["message"]))
            read += 1
    reasons = [
        {"stage": stage, "error": error, "count": count, "example": examples[stage, error][0],
         "message": examples[stage, error][1]}
        for (stage, error), count in counts.most_common(20)
    ]  # fmt: skip
    return {"total": dataset.manifest.totals.rejects, "read": read, "reasons": reasons}


def _throughput(dataset: Dataset) -> list[dict[str, Any]]:
    """What the last driver of each job wrote down, newest first; nothing where `_job/` was cleaned."""
    found = []
    newest = dataset.manifest.version
    for version in range(newest, max(0, newest - MOST_VERSIONS), -1):
        driver = latest_driver(JobFolder(dataset.store, version))[1]
        if driver is None or driver.phase == "":
            continue
        seconds = (datetime.fromisoformat(driver.at) - datetime.fromisoformat(driver.started)).total_seconds()
        found.append(
            {
                "version": version,
                "started": driver.started,
                "seconds": seconds,
                "inputs": driver.done,
                "inputs_per_second": driver.rate,
                "raw_bytes": driver.raw_bytes,
                "token_bytes": driver.token_bytes,
                "ended": driver.ended,
            }
        )
    return found


def _provenance(dataset: Dataset) -> dict[str, Any]:
    manifest, root = dataset.manifest, shlex.quote(dataset.store.root)
    spec, _ = dataset.tokenizer_files()
    jobs = []
    for job in manifest.jobs:
        jobs.append(job.model_dump(mode="json"))
    try:
        written = JobFolder(dataset.store, manifest.version).spec()
    except (SpecError, FormatError):  # of a later or an earlier release
        written = None
    shown = None if written is None else written.model_dump_json(indent=1, exclude={"storage"}, exclude_defaults=True)
    described = canonical_json(spec.model_dump(mode="json", exclude={"weights_sha256"})).decode()
    return {
        "source": manifest.source,
        "preprocess": manifest.preprocess,
        "jobs": jobs,
        "job_spec": None if shown is None else shown[:LARGEST_SPEC],
        "tokenizer": {
            "fingerprint": manifest.tokenizer.fingerprint,
            "numerics": manifest.tokenizer.numerics,
            "kind": spec.kind,
            "weights_sha256": spec.weights_sha256,
            "description": described[:LARGEST_SPEC],
        },
        "codecs": [column.model_dump(mode="json") for column in manifest.code.columns],
        "format_version": manifest.format_version,
        "min_reader": manifest.min_reader,
        "commands": [f"tokenshard verify {root} --deep", f"tokenshard info {root} --json"],
    }


def _grids(dataset: Dataset) -> dict[str, Any]:
    """Bound and errors of tiles of the sampled row groups, and the grids there are."""
    tokens_only = dataset.manifest.preprocess.get("bound") == "none"
    tiles, valid, largest = 0, 0, 0.0
    for group in sampled_groups(dataset):
        table = dataset.group_table(group, ["n_valid", "max_error"])
        tiles += table.num_rows
        valid += pc.sum(table["n_valid"]).as_py() or 0
        largest = max(largest, pc.max(table["max_error"]).as_py() or 0.0)
    listed = GridDataset(dataset) if len(dataset) <= MOST_TILES else None
    return {
        "bound": dataset.manifest.preprocess.get("bound"),
        "max_error": None if tokens_only else largest,
        "tiles": len(dataset),
        "tiles_read": tiles,
        "valid_cells_read": valid,
        "bits_per_valid_cell": 8 * dataset.manifest.totals.token_bytes * (tiles / max(1, len(dataset))) / max(1, valid),
        "grids": []
        if listed is None
        else [
            {
                "id": name,
                "uri": grid.entry.uri,
                "height": grid.entry.height,
                "width": grid.entry.width,
                "units": grid.entry.units,
                "levels": listed.levels(name),
            }
            for name, grid in list(listed.grids.items())[:50]
        ],
    }


def _documents(dataset: Dataset) -> dict[str, Any]:
    totals, levels = dataset.manifest.totals, max(1, len(dataset.manifest.code.columns))
    vectors = totals.ids / levels
    return {
        "pages": dataset.manifest.num_samples,
        "vectors": round(vectors),
        "vectors_per_page": vectors / max(1, totals.samples),
        "bytes_per_vector": totals.token_bytes / max(1.0, vectors),
        "bytes_per_page": totals.token_bytes / max(1, totals.samples),
    }
