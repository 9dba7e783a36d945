"""How the ids of a dataset are used, from a bounded sample of its row groups: a report costs the same at any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.report.code_use import CodeUse
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.stats import stored_levels

MOST_GROUPS = 16
MOST_IDS = 4_000_000
"""Row groups that are read for a report, and ids that are decoded of them, all levels together."""


@dataclass(frozen=True)
class SampledCodes:
    """Use of the codes of each level, and how many samples and ids that was counted in."""

    levels: list[CodeUse]
    samples: int
    ids: int


def sampled_codes(dataset: Dataset) -> SampledCodes:
    """Decode evenly spaced samples of evenly spaced row groups, of at most :data:`MOST_IDS` ids."""
    columns = dataset.manifest.code.columns
    counts = [np.zeros(_alphabet(dataset, level), np.int64) for level in range(len(columns))]
    groups = sampled_groups(dataset)
    samples = ids = 0
    for group in groups:
        found = dataset.read_group(group)
        each = found.grids.prod(axis=1, dtype=np.int64) * len(columns)
        wanted = min(found.rows, max(1, int(MOST_IDS / len(groups) / max(1.0, float(each.mean())))))
        rows = None if wanted == found.rows else np.unique(np.linspace(0, found.rows - 1, wanted).astype(np.int64))
        samples += found.rows if rows is None else len(rows)
        for level, decoded in enumerate(dataset.flat_codes(found, rows)):
            counts[level] = _added(counts[level], decoded)
            ids += len(decoded)
    return SampledCodes([CodeUse(count, ((),) * len(count), 0) for count in counts], samples, ids)


def sampled_groups(dataset: Dataset) -> list[int]:
    """Row groups spread evenly over the dataset, at most :data:`MOST_GROUPS`."""
    total = dataset.num_row_groups
    return np.unique(np.linspace(0, total - 1, min(total, MOST_GROUPS)).astype(int)).tolist() if total else []


def level_figures(dataset: Dataset, sampled: SampledCodes) -> list[dict[str, Any]]:
    """Of each level what the manifest says and how its codes are used; JSON-able."""
    return [
        stored
        | {"codes_used": int((use.counts > 0).sum()), "order0_entropy": use.entropy, "perplexity": use.perplexity}
        for stored, use in zip(stored_levels(dataset.manifest), sampled.levels, strict=True)
    ]


def _alphabet(dataset: Dataset, level: int) -> int:
    """Ids of a level are the tokenizer's below this number: the stored ones may be fewer."""
    remap = dataset.manifest.code.levels[level].remap
    stored = dataset.manifest.code.columns[level].alphabet
    return stored if remap is None else max(stored, max(remap, default=0) + 1)


def _added(counts: NDArray[np.int64], ids: NDArray[Any]) -> NDArray[np.int64]:
    return counts + np.bincount(ids, minlength=len(counts))
