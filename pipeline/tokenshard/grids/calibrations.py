"""The files `calibrations/<sha256>.parquet` of a dataset: one row a calibration of conformal widths.

A calibration is added by a new version of the manifest that lists one more of these files; shards stay as they are.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.errors import FormatError, ManifestConflict, SpecError
from tokenshard.grids.conformal import Calibration
from tokenshard.grids.strata import BY
from tokenshard.parquet import read_parquet
from tokenshard.shards.bounds import damage_reported, require
from tokenshard.shards.dataset import Dataset, read_sidecar
from tokenshard.shards.manifest import commit_manifest, read_manifest
from tokenshard.spec.manifest import Manifest

FOLDER = "calibrations"
BANDS = ("tokens", "elevation")
"""What widths can be around."""
ATTEMPTS = 20
_GROUP = pa.struct([pa.field("group", pa.int32()), pa.field("quantiles", pa.list_(pa.float64()))])
SCHEMA = pa.schema(
    [
        pa.field("band", pa.string(), nullable=False),
        pa.field("alpha", pa.float64(), nullable=False),
        pa.field("by", pa.list_(pa.string()), nullable=False),
        pa.field("normalised", pa.bool_(), nullable=False),
        pa.field("edges", pa.list_(pa.float64()), nullable=False),  # of classes of roughness, in the unit of the grid
        pa.field("quantiles", pa.list_(pa.float64()), nullable=False),  # one a class
        pa.field("groups", pa.list_(_GROUP), nullable=False),  # NaN: that of all groups holds
        pa.field("num_tiles", pa.int32(), nullable=False),
        pa.field("num_scores", pa.int64(), nullable=False),
        pa.field("regions", pa.list_(pa.string()), nullable=False),  # ids of the grids it was made on
        pa.field("tokenizer", pa.string(), nullable=False),  # fingerprint of what made the tokens
    ]
)


@dataclass(frozen=True)
class StoredCalibration:
    """A calibration as a dataset keeps it. ``id``: 12 hex digits of its content."""

    calibration: Calibration
    band: str
    by: tuple[str, ...]
    regions: tuple[str, ...]
    tokenizer: str
    id: str = ""


def write_calibration(stored: StoredCalibration) -> bytes:
    """The file. Equal calibrations give equal bytes."""
    own = stored.calibration
    row = {
        "band": stored.band,
        "alpha": own.alpha,
        "by": list(stored.by),
        "normalised": own.normalised,
        "edges": list(own.edges),
        "quantiles": list(own.quantiles),
        "groups": [{"group": number, "quantiles": list(values)} for number, values in own.by_group],
        "num_tiles": own.num_tiles,
        "num_scores": own.num_scores,
        "regions": list(stored.regions),
        "tokenizer": stored.tokenizer,
    }
    file = io.BytesIO()
    table = pa.Table.from_pylist([row], schema=SCHEMA)
    pq.write_table(table, file, version="2.6", compression="zstd", write_page_checksum=True)
    return file.getvalue()


def read_calibrations(dataset: Dataset) -> list[StoredCalibration]:
    """All calibrations of a dataset, by id. Raises FormatError where one is damaged."""
    found = []
    for path in dataset.manifest.sidecars:
        if path.startswith(f"{FOLDER}/"):
            with damage_reported(dataset.store.url(path)):
                data = read_sidecar(dataset.store, dataset.manifest, path)
                table = read_parquet(data)
                found += [_checked(row, _id(data)) for row in table.select(SCHEMA.names).to_pylist()]
    return sorted(found, key=lambda stored: stored.id)


def choose_calibration(dataset: Dataset, band: str | None, name: str | None = None) -> StoredCalibration:
    """The calibration with an id or level (0.9), of a band; the only one where nothing is asked for.

    Raises SpecError where there is none, or several.
    """
    known = [stored for stored in read_calibrations(dataset) if band in (None, stored.band)]
    found = [stored for stored in known if name in (None, stored.id, f"{1 - stored.calibration.alpha:g}")]
    if len(found) == 1:
        return found[0]
    where = dataset.store.root
    if not known:
        raise SpecError(
            f"{where}: has no calibration{f' of {band}' if band else ''}, without which there are no conformal widths; "
            "make one with `tokenshard grid calibrate`"
        )
    listed = ", ".join(f"{stored.id} ({1 - stored.calibration.alpha:g}, {','.join(stored.by)})" for stored in known)
    what = "several calibrations" if name is None or found else f"no calibration {name!r}"
    raise SpecError(f"{where}: {what}; choose one with --calibration: {listed}")


def add_calibration(dataset: Dataset, stored: StoredCalibration) -> tuple[Manifest, str]:
    """Commit a version of the dataset that has this calibration too; returns it, and the id of the calibration.

    A dataset that has it already stays as it is. Where another version came first, this one is put on top of it.
    """
    data = write_calibration(stored)
    path = f"{FOLDER}/{hashlib.sha256(data).hexdigest()}.parquet"
    dataset.store.put_if_absent(path, data)
    for attempt in range(ATTEMPTS):
        newest = read_manifest(dataset.store)
        if path in newest.sidecars:
            return newest, _id(data)
        if newest.tokenizer.fingerprint != stored.tokenizer:
            raise SpecError(f"{dataset.store.root}: was made anew with another tokenizer meanwhile; calibrate again")
        sidecars = dict(sorted({**newest.sidecars, path: len(data)}.items()))
        wanted = newest.model_copy(
            update={"version": newest.version + 1, "parent": newest.version, "sidecars": sidecars}
        )
        try:
            return commit_manifest(dataset.store, wanted), _id(data)
        except ManifestConflict:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _checked(row: dict[str, Any], name: str) -> StoredCalibration:
    classes = len(row["quantiles"])
    require(row["band"] in BANDS and 0 < row["alpha"] < 1, "a calibration of an unknown band or level")
    require(set(row["by"]) <= set(BY), "cells are told apart by what this tokenshard does not know: update it")
    lists = [row["quantiles"], *(group["quantiles"] for group in row["groups"])]
    require(len(row["edges"]) == classes - 1 and all(len(one) == classes for one in lists), "classes do not add up")
    require(bool((np.diff(row["edges"]) > 0).all()), "edges of classes do not ascend")
    if any(width is None or width < 0 for one in lists for width in one) or np.isnan(row["quantiles"]).any():
        raise FormatError("widths that are no numbers")
    groups = tuple((group["group"], tuple(group["quantiles"])) for group in row["groups"])
    own = Calibration(
        row["alpha"],
        tuple(row["edges"]),
        tuple(row["quantiles"]),
        row["normalised"],
        row["num_tiles"],
        row["num_scores"],
        groups,
    )
    return StoredCalibration(own, row["band"], tuple(row["by"]), tuple(row["regions"]), row["tokenizer"], name)
