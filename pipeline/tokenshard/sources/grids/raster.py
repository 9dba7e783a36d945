"""GeoTIFF, COG, Esri ASCII and whatever else GDAL reads as bands of one raster."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.grids.attributes import attribute_entries
from tokenshard.sources.grids.opened import (
    TYPES,
    OpenGrid,
    chosen_crs,
    fill_numbers,
    full_turn,
    metres_of,
    vertical_datum,
)
from tokenshard.spec.grids import AttributeEntry, GridEntry, GridSourceSpec, LayerEntry
from tokenshard.store import Store

_SUFFIX = ".aux.xml"
_LARGEST_DOCUMENT = 16 << 20


def open_dataset(store: Store, name: str) -> Any:
    """A rasterio dataset. Raises InputError where GDAL cannot open it."""
    import rasterio
    from rasterio.errors import RasterioError

    options: dict[str, Any] = {}
    if not store.is_local:
        options["opener"] = lambda path, *_, **__: store.open(str(path).removeprefix(f"{store.root}/"))
    try:
        return rasterio.open(store.url(name), **options)
    except (RasterioError, OSError) as error:
        raise InputError(f"damaged or no raster ({_reason(error)}); copy it again") from error


def open_raster(store: Store, name: str, spec: GridSourceSpec) -> OpenGrid:
    """The grid of a raster file: the chosen band, and bands whose names say that they belong to it."""
    dataset = open_dataset(store, name)
    entry = _entry(dataset, store, name, spec)
    bands = _bands(dataset, spec)
    return OpenGrid(entry, tuple(partial(_read, dataset, band) for band, _ in bands), close=dataset.close)


def _entry(dataset: Any, store: Store, name: str, spec: GridSourceSpec) -> GridEntry:
    transform = dataset.transform
    declared = dataset.crs.to_wkt(version="WKT2_2018") if dataset.crs else None
    crs, stated = chosen_crs(declared, spec.crs)
    placed = not transform.is_identity
    geographic = bool(dataset.crs and dataset.crs.is_geographic)
    tags = dataset.tags()
    bands = _bands(dataset, spec)
    first = bands[0][0]
    units = dataset.units[first - 1] or tags.get("units") or None
    turn = full_turn(transform.a, dataset.width) if geographic and placed and not transform.b else None
    return GridEntry(
        uri="",
        form="raster",
        height=dataset.height,
        width=dataset.width,
        layers=tuple(_layer(dataset, band, role) for band, role in bands),
        crs=crs,
        crs_stated=stated,
        affine=tuple(transform)[:6] if placed else None,
        registration="gridline" if tags.get("AREA_OR_POINT") == "Point" else "pixel",
        rows="south-up" if transform.e > 0 and placed else "north-up",
        geographic=geographic,
        period=turn,
        units=units,
        metres=metres_of(units),
        positive="down" if "depth" in (dataset.descriptions[first - 1] or "").lower() else "up",
        vertical_datum=vertical_datum(declared),
        attributes=tuple(AttributeEntry(name=key, type="text", value=value) for key, value in sorted(tags.items())),
        documents=_documents(store, name),
    )


def _bands(dataset: Any, spec: GridSourceSpec) -> list[tuple[int, str]]:
    """(number of the band, role), the values first."""
    wanted = spec.variable or "1"
    named = {
        str(description or ""): band for band, description in zip(dataset.indexes, dataset.descriptions, strict=True)
    }
    if wanted.isdecimal() and int(wanted) in dataset.indexes:
        first = int(wanted)
    elif wanted in named:
        first = named[wanted]
    else:
        listed = ", ".join(f"{band} {title}".strip() for title, band in named.items())
        raise InputError(f"no band {wanted!r}; there are: {listed}; choose one with --variable")
    found = [(first, "elevation")]
    for title, band in named.items():
        text = title.lower()
        role = "uncertainty" if "uncert" in text else "source" if text in {"contributor", "tid", "source"} else ""
        if role and band != first and role not in {taken for _, taken in found}:
            found.append((band, role))
    return found


def _layer(dataset: Any, band: int, role: str) -> LayerEntry:
    kind = np.dtype(dataset.dtypes[band - 1])
    if kind.name not in TYPES:
        raise InputError(f"band {band} holds {kind}; grids hold whole or real numbers")
    nodata = dataset.nodatavals[band - 1]
    tags = {key: value for key, value in sorted(dataset.tags(band).items()) if not key.startswith("STATISTICS_")}
    return LayerEntry.model_validate(
        {
            "name": dataset.descriptions[band - 1] or f"band_{band}",
            "role": role,
            "dtype": kind.name,
            "fills": fill_numbers([] if nodata is None else [nodata], kind),
            "scale": dataset.scales[band - 1],
            "offset": dataset.offsets[band - 1],
            "attributes": attribute_entries(tags),
        }
    )


def _documents(store: Store, name: str) -> dict[str, str]:
    """The raster attribute table and the like, which GDAL keeps in a file of its own."""
    beside = name + _SUFFIX
    if not store.exists(beside) or store.size(beside) > _LARGEST_DOCUMENT:
        return {}
    return {os.path.basename(beside)[-len(_SUFFIX) + 1 :]: store.read(beside).decode("utf-8", "replace")}


def _read(dataset: Any, band: int, rows: slice, columns: slice) -> NDArray[Any]:
    from rasterio.errors import RasterioError

    window = ((rows.start, rows.stop), (columns.start, columns.stop))
    try:
        values: NDArray[Any] = dataset.read(band, window=window)
    except (RasterioError, OSError) as error:
        raise InputError(f"damaged or truncated raster ({_reason(error)}); copy it again") from error
    return values


def _reason(error: Exception) -> str:
    """The first line of what GDAL says, which may quote the path: its last part is enough."""
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]
