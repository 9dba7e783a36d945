"""Where the bytes of a dataset are: columns, levels against their entropies, shards, and what was rejected."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenshard.shards.rejects import REJECTS_SCHEMA, read_rejects_file
from tokenshard.shards.schema import length_name
from tokenshard.shards.stats import column_bytes, context_bits, stored_levels
from tokenshard.viewer.counting import counted
from tokenshard.viewer.opened import Opened

MOST_SHARDS = 64
"""Footers that are read, of shards spread evenly."""
SHARDS_LISTED = 500
REJECTS_FILES = 200
REJECTS_LISTED = 200
MESSAGE = 500
"""Characters of a message that are shown."""


def storage(opened: Opened) -> dict[str, Any]:
    """Bytes by column and role, levels with their entropies, and the list of shards; of large datasets the first."""
    dataset, manifest = opened.dataset, opened.dataset.manifest
    shards = manifest.shards
    read = np.unique(np.linspace(0, max(0, len(shards) - 1), MOST_SHARDS).round().astype(int))[: len(shards)].tolist()
    sizes = column_bytes(dataset, read)
    of_read = sum(shards[number].bytes for number in read)
    scale = manifest.totals.token_bytes / of_read if of_read else 0.0
    roles = {column.name: column.role for column in manifest.columns}
    lengths = {"num_tokens", *(length_name(spec) for spec in manifest.code.columns)}
    columns = [
        {"name": name, "role": "length" if name in lengths else roles.get(name, "metadata"), "bytes": size * scale}
        for name, size in sizes.items()
    ]
    columns.append({"name": "footers and headers", "role": "footer", "bytes": (of_read - sum(sizes.values())) * scale})
    columns += [{"name": f"model {name[:8]}", "role": "model", "bytes": size} for name, size in manifest.models.items()]
    columns += [{"name": path, "role": "sidecar", "bytes": size} for path, size in manifest.sidecars.items()]
    return {
        "bytes": manifest.totals.token_bytes,
        "raw_bytes": manifest.totals.raw_bytes,
        "tokens": manifest.totals.ids,
        "samples": manifest.totals.samples,
        "deleted": manifest.totals.samples - manifest.num_samples,
        "columns": sorted(columns, key=lambda column: -float(column["bytes"])),
        "levels": _levels(opened),
        "counted": counted(opened).of_whom(),
        "row_groups": dataset.num_row_groups,
        "num_shards": len(shards),
        "shards_read": len(read),
        "shards": [
            {
                "path": shard.path,
                "rows": shard.rows,
                "bytes": shard.bytes,
                "row_groups": len(shard.row_groups),
                "deleted": shard.num_deleted,
                "first": shard.min_key,
                "last": shard.max_key,
            }
            for shard in (shards[number] for number in range(min(len(shards), SHARDS_LISTED)))
        ],
    }


def rejects(opened: Opened) -> dict[str, Any]:
    """Inputs that were rejected: how many by stage and error, and the first of them."""
    manifest = opened.dataset.manifest
    files = manifest.rejects[:REJECTS_FILES]
    reasons: dict[tuple[str, str], int] = {}
    rows: list[dict[str, Any]] = []
    for entry in files:
        table = read_rejects_file(opened.dataset.store, entry)
        for row in table.group_by(["stage", "error"]).aggregate([([], "count_all")]).to_pylist():
            reason = row["stage"], row["error"]
            reasons[reason] = reasons.get(reason, 0) + row["count_all"]
        rows += table.slice(0, REJECTS_LISTED - len(rows)).to_pylist()
    return {
        "total": manifest.totals.rejects,
        "read": sum(entry.rows for entry in files),
        "reasons": [
            {"stage": stage, "error": error, "count": count}
            for (stage, error), count in sorted(reasons.items(), key=lambda item: -item[1])
        ],
        "rows": [
            {name: row[name][:MESSAGE] for name in REJECTS_SCHEMA.names if isinstance(row[name], str)} for row in rows
        ],
    }


def _levels(opened: Opened) -> list[dict[str, Any]]:
    found = counted(opened)
    levels = stored_levels(opened.dataset.manifest)
    for level, spec, use in zip(levels, opened.dataset.manifest.code.columns, found.uses, strict=True):
        level["order0_entropy"] = use.entropy
        level["context_bits"] = context_bits(opened.dataset, spec)
        level["codes_used"] = int(np.count_nonzero(use.counts))
    return levels
