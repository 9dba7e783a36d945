"""NetCDF 4 after the CF conventions: coordinates, reference system and attributes as the source had them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.decode import Band, GridDecoder
from tokenshard.grids.georeference import Window
from tokenshard.sources.grids.attributes import attribute_values, plain_number
from tokenshard.spec.grids import AxisEntry, GridEntry

CHUNK = 256
_MAPPING = "crs"
_FILL = "_FillValue"


def write_netcdf(path: Path, decoder: GridDecoder, window: Window, bands: Sequence[Band]) -> None:
    """Write bands of a window, a strip of tiles at a time; each band in its own type."""
    import h5netcdf

    entry = decoder.entry
    y_name, x_name = _axis_names(entry)
    height, width = window.shape
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {y_name: height, x_name: width}
        _put_attributes(file, {"Conventions": "CF-1.8", **attribute_values(entry.attributes), **_own(decoder)})
        axes = _coordinates(decoder, window)
        for name, entry_axis, values in zip((y_name, x_name), (entry.y, entry.x), axes, strict=True):
            if values is not None:
                _put_axis(file, name, entry_axis, values, entry)
        mapping = _put_mapping(file, decoder, window)
        variables = [_put_variable(file, band, (y_name, x_name), decoder, mapping, window) for band in bands]
        beside = [band.name for band in bands[1:]]
        if beside:
            variables[0].attrs["ancillary_variables"] = " ".join(beside)
        top = window.rows.start
        for strip, arrays in decoder.strips(window, bands):
            for variable, values in zip(variables, arrays, strict=True):
                variable[strip.rows.start - top : strip.rows.stop - top, :] = values


def _axis_names(entry: GridEntry) -> tuple[str, str]:
    if entry.x is not None and entry.y is not None:
        return entry.y.name, entry.x.name
    return ("lat", "lon") if entry.geographic else ("y", "x")


def _coordinates(decoder: GridDecoder, window: Window) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    rows = np.arange(window.rows.start, window.rows.stop)
    columns = np.arange(window.columns.start, window.columns.stop)
    x, y = decoder.reference.x, decoder.reference.y
    return (None if y is None else y.at(rows)), (None if x is None else x.at(columns))


def _put_axis(file: Any, name: str, axis: AxisEntry | None, values: NDArray[Any], entry: GridEntry) -> None:
    east = name == _axis_names(entry)[1]
    if entry.geographic:
        known = {"standard_name": "longitude", "units": "degrees_east"}
        known = known if east else {"standard_name": "latitude", "units": "degrees_north"}
    elif entry.crs is not None:
        known = {"standard_name": f"projection_{'x' if east else 'y'}_coordinate", "units": "m"}
    else:
        known = {}
    own = {} if axis is None else attribute_values(axis.attributes)
    fill = own.pop(_FILL, None)
    own.pop("actual_range", None)
    variable = file.create_variable(name, (name,), values.dtype, data=values, fillvalue=fill)
    _put_attributes(variable, {**known, **own})


def _put_mapping(file: Any, decoder: GridDecoder, window: Window) -> str | None:
    """The variable that describes the reference system."""
    entry = decoder.entry
    if entry.crs is None:
        return None
    name = entry.grid_mapping or _MAPPING
    if name in file.variables:
        name = f"{_MAPPING}_wkt"
    own = attribute_values(entry.grid_mapping_attributes)
    own.pop("GeoTransform", None)
    affine = decoder.reference.affine(window)
    if affine is not None:
        a, b, c, d, e, f = affine
        own["GeoTransform"] = " ".join(map(repr, (c, a, b, f, d, e)))
    own.setdefault("grid_mapping_name", "latitude_longitude" if entry.geographic else "unknown")
    if own["grid_mapping_name"] == "unknown":
        del own["grid_mapping_name"]
    variable = file.create_variable(name, (), np.int32, data=np.int32(0))
    _put_attributes(variable, {**own, "crs_wkt": entry.crs, "spatial_ref": own.get("spatial_ref", entry.crs)})
    return name


def _put_variable(
    file: Any, band: Band, dims: tuple[str, str], decoder: GridDecoder, mapping: str | None, window: Window
) -> Any:
    entry, layer = decoder.entry, band.layer
    own = {} if layer is None else attribute_values(layer.attributes)
    fill = own.pop(_FILL, None)
    for stale in ("actual_range", "ancillary_variables", "coordinates", "grid_mapping"):
        own.pop(stale, None)
    kind = np.dtype(band.dtype)
    if layer is None:
        fill = kind.type(np.nan) if kind.kind == "f" else None
    elif layer.fills and fill is None and "missing_value" not in own and entry.form not in {"netcdf3", "netcdf4"}:
        fill = kind.type(plain_number(layer.fills[0]))
    chunks = tuple(min(CHUNK, size) for size in window.shape)
    variable = file.create_variable(
        band.name, dims, kind, chunks=chunks, compression="gzip", compression_opts=4, shuffle=True, fillvalue=fill
    )
    _put_attributes(variable, {**_known(band, entry), **own, **({"grid_mapping": mapping} if mapping else {})})
    if band.kind == "elevation":
        _put_attributes(variable, _own(decoder))
    if layer is not None and entry.form == "raster":
        if layer.scale != 1.0:
            variable.attrs["scale_factor"] = np.float64(layer.scale)
        if layer.offset != 0.0:
            variable.attrs["add_offset"] = np.float64(layer.offset)
    return variable


def _known(band: Band, entry: GridEntry) -> dict[str, Any]:
    """What CF wants to know of a band, as far as the source's attributes do not say it."""
    found: dict[str, Any] = {}
    if entry.units and band.kind not in {"source", "tid"}:
        found["units"] = entry.units
    if band.kind in {"elevation", "shoalest", "lower", "upper", "tokens"}:
        found["positive"] = entry.positive
    if band.kind != "elevation":
        name = entry.elevation.name
        said = {"uncertainty": f"uncertainty of {name} (95 %)", "source": f"source of {name}"}
        said["tid"] = f"type identifier of {name}: 41 interpolated, 70 not told"
        found["long_name"] = said.get(band.kind, f"{name}, {band.kind}")
    return found


def _own(decoder: GridDecoder) -> Mapping[str, Any]:
    found = {name: np.int32(fact) if isinstance(fact, int) else fact for name, fact in decoder.facts.items()}
    if decoder.entry.vertical_datum:
        found["vertical_datum"] = decoder.entry.vertical_datum
    return found


def _put_attributes(target: Any, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        target.attrs[name] = value
