"""Bathymetric Attributed Grids (BAG) of the Open Navigation Surface: HDF5 with an elevation and its uncertainty."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.grids.attributes import attribute_entries
from tokenshard.sources.grids.netcdf4 import CHUNK_CACHE
from tokenshard.sources.grids.opened import OpenGrid, chosen_crs, fill_numbers, vertical_datum
from tokenshard.sources.grids.raster import open_dataset
from tokenshard.spec.grids import GridEntry, GridSourceSpec, LayerEntry
from tokenshard.store import Store

ROOT = "BAG_root"
NODATA = 1e6
_LARGEST_DOCUMENT = 16 << 20


def open_hdf5(store: Store, name: str) -> Any:
    """An h5py file. Raises InputError where it is damaged or ends too early."""
    import h5py

    try:
        return h5py.File(store.open(name), "r", rdcc_nbytes=CHUNK_CACHE)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"damaged or truncated HDF5 file ({reason}); copy it again") from error


def open_bag(store: Store, name: str, spec: GridSourceSpec) -> OpenGrid:
    """The grid of a BAG with one resolution. Its rows stay as the file has them, from south to north."""
    file = open_hdf5(store, name)
    root = file[ROOT]
    if "varres_metadata" in root:
        file.close()
        raise InputError(
            "a variable-resolution BAG, which is not one grid; resample it first: gdal_translate -oo "
            "MODE=RESAMPLED_GRID in.bag out.tif"
        )
    elevation = root["elevation"]
    with open_dataset(store, name) as dataset:  # GDAL reads position and reference system from the XML
        declared = dataset.crs.to_wkt(version="WKT2_2018") if dataset.crs else None
        north_up = dataset.transform
        placed = not north_up.is_identity
    height, width = elevation.shape
    layers, reads = [], []
    for title, role in (("elevation", "elevation"), ("uncertainty", "uncertainty")):
        if title in root and root[title].shape == (height, width):
            layers.append(_layer(root[title], title, role))
            reads.append(partial(read_rows, root[title], None))
    crs, stated = chosen_crs(declared, spec.crs)
    south = north_up.f + north_up.e * height
    document = bytes(root["metadata"][:_LARGEST_DOCUMENT].tobytes()) if "metadata" in root else b""
    entry = GridEntry(
        uri="",
        form="bag",
        height=height,
        width=width,
        layers=tuple(layers),
        crs=crs,
        crs_stated=stated,
        affine=(north_up.a, 0.0, north_up.c, 0.0, -north_up.e, south) if placed else None,
        registration="gridline",
        rows="south-up",
        geographic=bool(crs and crs.startswith("GEOGCRS")),
        units="m",
        metres=1.0,
        vertical_datum=vertical_datum(declared),
        attributes=attribute_entries(root.attrs),
        documents={"metadata.xml": document.rstrip(b"\0").decode("utf-8", "replace")} if document else {},
    )
    return OpenGrid(entry, tuple(reads), close=file.close)


def _layer(data: Any, title: str, role: str) -> LayerEntry:
    kind = np.dtype(data.dtype.newbyteorder("="))
    return LayerEntry.model_validate(
        {
            "name": title,
            "role": role,
            "dtype": kind.name,
            "fills": fill_numbers([NODATA], kind),
            "attributes": attribute_entries(data.attrs),
        }
    )


def read_rows(data: Any, member: str | None, rows: slice, columns: slice) -> NDArray[Any]:
    """A window of an HDF5 array, or of one member of its records."""
    try:
        values: NDArray[Any] = data[rows, columns]
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"damaged or truncated HDF5 file ({reason}); copy it again") from error
    values = values if member is None else np.ascontiguousarray(values[member])
    return values.astype(values.dtype.newbyteorder("="), copy=False)
