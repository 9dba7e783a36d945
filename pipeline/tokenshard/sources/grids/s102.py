"""S-102 bathymetric surfaces of the IHO (HDF5): depths, positive down, with uncertainty and quality of each cell."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np

from tokenshard.errors import InputError
from tokenshard.sources.grids.attributes import attribute_entries, number
from tokenshard.sources.grids.bag import open_hdf5, read_rows
from tokenshard.sources.grids.opened import OpenGrid, affine_of, chosen_crs, fill_numbers, vertical_datum
from tokenshard.spec.grids import GridEntry, GridSourceSpec, LayerEntry
from tokenshard.store import Store

COVERAGE = "BathymetryCoverage"
QUALITY = "QualityOfBathymetryCoverage"
NODATA = 1e6
_LARGEST_TABLE = 1 << 16


def open_s102(store: Store, name: str, spec: GridSourceSpec) -> OpenGrid:
    """The surface of a file with one instance of the coverage. Rows stay as the file has them, from south to north."""
    file = open_hdf5(store, name)
    instances = [key for key in file[COVERAGE] if key.startswith(f"{COVERAGE}.")]
    if len(instances) != 1:
        raise InputError(f"{len(instances)} surfaces in one file; write each to a file of its own")
    instance = file[COVERAGE][instances[0]]
    values = instance["Group_001/values"]
    if values.dtype.names is None or "depth" not in values.dtype.names or values.ndim != 2:
        raise InputError("its values have no depth; is it an S-102 surface?")
    place = {title: number(instance.attrs, title) for title in (
        "gridOriginLongitude", "gridOriginLatitude", "gridSpacingLongitudinal", "gridSpacingLatitudinal"
    )}  # fmt: skip
    steps = [value for value in place.values() if value is not None]
    code = number(file.attrs, "horizontalCRS") or number(file.attrs, "horizontalDatumValue")
    crs, stated = chosen_crs(f"EPSG:{int(code)}" if code and code > 0 else None, spec.crs)
    layers, reads = [_layer(values, "depth", "elevation")], [partial(read_rows, values, "depth")]
    if "uncertainty" in values.dtype.names:
        layers.append(_layer(values, "uncertainty", "uncertainty"))
        reads.append(partial(read_rows, values, "uncertainty"))
    quality, table = _quality(file, values.shape)
    if quality is not None:
        member = None if quality.dtype.names is None else quality.dtype.names[0]
        layers.append(_layer(quality, "quality", "source", member))
        reads.append(partial(read_rows, quality, member))
    height, width = values.shape
    entry = GridEntry(
        uri="",
        form="s102",
        height=height,
        width=width,
        layers=tuple(layers),
        crs=crs,
        crs_stated=stated,
        affine=affine_of(steps[0], steps[2], steps[1], steps[3]) if len(steps) == 4 else None,
        registration="gridline",
        rows="south-up",
        geographic=bool(crs and crs.startswith("GEOGCRS")),
        units="m",
        metres=1.0,
        positive="down",
        vertical_datum=vertical_datum(crs) or _text(number(file.attrs, "verticalDatum")),
        attributes=attribute_entries(file.attrs),
        documents=table,
    )
    return OpenGrid(entry, tuple(reads), close=file.close)


def _text(value: float | None) -> str | None:
    return None if value is None else f"S-100 vertical datum {value:g}"


def _layer(data: Any, title: str, role: str, member: str | None = None) -> LayerEntry:
    kind = data.dtype if data.dtype.names is None else data.dtype[member or title]
    kind = np.dtype(kind.newbyteorder("="))
    fills = [0] if role == "source" else [NODATA]
    return LayerEntry.model_validate(
        {"name": title, "role": role, "dtype": kind.name, "fills": fill_numbers(fills, kind)}
    )


def _quality(file: Any, shape: tuple[int, int]) -> tuple[Any, dict[str, str]]:
    """Ids of each cell's quality, and what they stand for."""
    group = file.get(f"{QUALITY}/{QUALITY}.01/Group_001")
    if group is None or "values" not in group or group["values"].shape != shape:
        return None, {}
    table = file.get(f"{QUALITY}/featureAttributeTable")
    if table is None or len(table) > _LARGEST_TABLE:
        return group["values"], {}
    rows = [dict(zip(table.dtype.names, (_plain(value) for value in row), strict=True)) for row in table[:]]
    return group["values"], {"featureAttributeTable.json": json.dumps(rows)}


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value.item()
