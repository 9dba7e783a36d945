"""What a dataset of grids costs by layer, and how far its cells are off."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from tokenshard.grids.dataset import GridDataset
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import length_name
from tokenshard.shards.stats import column_bytes

_OWN = {"mean": "tokens", "log2gain": "tokens", "stream": "bounded", "nodata": "bounded", "shoalest": "bounded"}
_OWN |= {"width_q": "widths", "width_kind": "widths", "uncertainty": "source layers", "source": "source layers"}
LAYERS = ("tokens", "bounded", "widths", "source layers", "other")
"""Tokens with what normalises them; cells within their bound, with those of reduced levels; widths of the tokens; the
survey's own uncertainty and source; keys, places and footers."""


def grid_stats(dataset: Dataset) -> dict[str, Any]:
    """Figures of a dataset of grids, as a JSON-able dict.

    `cells`, `valid_cells`: of all stored levels. `layer_bytes`: bytes of whole column chunks by :data:`LAYERS`.
    `bound_bits_per_cell`: of the layer `bounded`, a valid cell; `file_bits_per_cell`: of the shard files;
    `max_error`: the largest that was measured in any tile, in the unit of its grid. The first and the last are null
    where there are only tokens. Raises SpecError for a dataset of anything else.
    """
    grids = GridDataset(dataset)
    manifest = dataset.manifest
    layer_of = {name: "tokens" for spec in manifest.code.columns for name in (spec.column, length_name(spec))} | _OWN
    sizes = dict.fromkeys(LAYERS, 0)
    for name, size in column_bytes(dataset).items():
        sizes[layer_of.get(name, "other")] += size
    sizes["other"] += manifest.totals.token_bytes - sum(sizes.values())
    table = dataset.table(["height", "width", "n_valid", "max_error"])
    cells = pc.sum(pc.multiply(table["height"].cast("int64"), table["width"].cast("int64"))).as_py() or 0
    valid = pc.sum(table["n_valid"]).as_py() or 0
    tokens_only = manifest.preprocess.get("bound") == "none"
    return {
        "bound": manifest.preprocess.get("bound"),
        "grids": len(grids.grids),
        "cells": cells,
        "valid_cells": valid,
        "layer_bytes": sizes,
        "bound_bits_per_cell": None if tokens_only else 8 * sizes["bounded"] / max(1, valid),
        "file_bits_per_cell": 8 * manifest.totals.token_bytes / max(1, valid),
        "max_error": None if tokens_only else pc.max(table["max_error"]).as_py() or 0.0,
    }
