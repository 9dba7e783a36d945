"""From named arrays to one grid: which variable holds the values, where its cells are, and what is beside it.

After the CF conventions, COARDS, and what GMT, GDAL, Ferret and xarray write without saying so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.grids.arrays import ArrayFile, Variable
from tokenshard.sources.grids.attributes import attribute_entries, number, text
from tokenshard.sources.grids.opened import (
    NETCDF_FILLS,
    TYPES,
    OpenGrid,
    ReadWindow,
    affine_of,
    axis_step,
    chosen_crs,
    fill_numbers,
    full_turn,
    metres_of,
    vertical_datum,
)
from tokenshard.spec.grids import AxisEntry, GridEntry, GridSourceSpec, LayerEntry

_HEIGHTS = re.compile(
    r"^(z|elevation|elev|altitude|height|depth|topo.*|bathy.*|band1|rose|relief|geoid|gravity|tid)$", re.IGNORECASE
)
_X = re.compile(r"^(x|lon|longitude|easting|.*x(\d.*)?)$", re.IGNORECASE)
_UNCERTAINTY = re.compile(r"uncert|standard_error|tvu|sigma", re.IGNORECASE)
_SOURCE = re.compile(r"^(tid|contributor|source|quality)$", re.IGNORECASE)
_LINKS = ("coordinates", "ancillary_variables", "grid_mapping", "bounds", "cell_measures", "formula_terms")
_HIDDEN = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates")
_DEPTHS = re.compile(r"depth", re.IGNORECASE)
_GREATEST_AXIS = 1 << 26


def open_cf(file: ArrayFile, spec: GridSourceSpec) -> OpenGrid:
    """The grid of a file. Raises InputError where there is none, or several and none is chosen."""
    main = _chosen(file, spec.variable)
    rows, columns, turned = _axes(file, main)
    layers, reads = _layers(file, main, turned)
    height, width = (main.shape[-1], main.shape[-2]) if turned else main.shape[-2:]
    if max(height, width) > _GREATEST_AXIS:
        raise InputError(f"variable {main.name!r} has {height} x {width} cells, more than this program handles")
    x, y = _coordinates(columns, width), _coordinates(rows, height)
    mapping = file.variables.get(text(main.attributes, "grid_mapping"))
    crs, stated = chosen_crs(_declared_crs(mapping, main, file), spec.crs)
    dx, dy = (None if axis is None else axis_step(axis) for axis in (x, y))
    affine = None
    if x is not None and y is not None and dx is not None and dy is not None:
        affine = affine_of(float(x[0]), dx, float(y[0]), dy)
    geographic = _is_geographic(columns, crs)
    units = text(main.attributes, "units") or None
    entry = GridEntry(
        uri="",
        form=file.form,
        height=height,
        width=width,
        layers=layers,
        crs=crs,
        crs_stated=stated,
        affine=affine,
        x=None if columns is None or x is None else _axis_entry(columns),
        y=None if rows is None or y is None else _axis_entry(rows),
        registration=_registration(file, main, rows, y),
        rows="south-up" if y is not None and len(y) > 1 and y[-1] > y[0] else "north-up",
        geographic=geographic,
        period=full_turn(dx, width) if geographic else None,
        units=units,
        metres=metres_of(units),
        positive=_positive(main),
        vertical_datum=vertical_datum(crs) or text(main.attributes, "vertical_datum") or None,
        attributes=attribute_entries(file.attributes, ("_NCProperties", "_nc3_strict")),
        grid_mapping=None if mapping is None else mapping.name,
        grid_mapping_attributes=() if mapping is None else attribute_entries(mapping.attributes, _HIDDEN),
    )
    return OpenGrid(entry, reads, x, y, file.close)


def _chosen(file: ArrayFile, wanted: str | None) -> Variable:
    grids = {name: v for name, v in file.variables.items() if _is_grid(v)}
    if wanted is not None:
        if wanted in grids:
            return grids[wanted]
        listed = ", ".join(grids) or "none"
        raise InputError(f"no grid variable {wanted!r}; there are: {listed}; choose one with --variable")
    linked = {
        name
        for variable in file.variables.values()
        for link in _LINKS
        for name in text(variable.attributes, link).split()
    }
    candidates = [v for name, v in grids.items() if name not in linked and not _is_companion(v)] or list(grids.values())
    usual = [v for v in candidates if _HEIGHTS.match(v.name)]
    if len(candidates) == 1 or len(usual) == 1:
        return usual[0] if len(usual) == 1 else candidates[0]
    if not grids:
        deep = [v for v in file.variables.values() if len(v.shape) > 2 and v.dtype.name in TYPES]
        if deep:
            sizes = " x ".join(map(str, deep[0].shape))
            raise InputError(f"{deep[0].name!r} has {sizes} cells, not two axes; write each of its grids to a file")
        raise InputError("no variable with two axes and several cells; points must be gridded first")
    raise InputError(f"several grids: {', '.join(v.name for v in candidates)}; choose one with --variable")


def _is_grid(variable: Variable) -> bool:
    """Two axes of more than one cell in all; axes before them, e.g. time, have one."""
    shape = variable.shape
    return (
        len(shape) >= 2
        and all(size == 1 for size in shape[:-2])
        and shape[-1] * shape[-2] > 1
        and variable.dtype.name in TYPES
    )


def _is_companion(variable: Variable) -> bool:
    """Whether a variable says something about another: its uncertainty, or where it comes from."""
    return any(kind.search(variable.name) for kind in (_SOURCE, _UNCERTAINTY))


def _axes(file: ArrayFile, main: Variable) -> tuple[Variable | None, Variable | None, bool]:
    """Coordinate variables of rows and columns, and whether rows are the last axis of the array."""
    first, last = (file.variables.get(dim) for dim in main.dims[-2:])
    turned = _is_x(first, main.dims[-2]) and not _is_x(last, main.dims[-1])
    return (last, first, True) if turned else (first, last, False)


def _is_x(axis: Variable | None, dim: str) -> bool:
    if axis is not None:
        units, standard = text(axis.attributes, "units"), text(axis.attributes, "standard_name")
        if units.startswith("degree") and units not in {"degree", "degrees"}:
            return "east" in units.lower()
        if standard:
            return standard in {"longitude", "projection_x_coordinate", "grid_longitude"}
        if said := text(axis.attributes, "axis"):
            return said.upper() == "X"
    return _X.match(dim) is not None


def _coordinates(axis: Variable | None, size: int) -> NDArray[Any] | None:
    if axis is None or axis.shape != (size,) or axis.dtype.kind not in "iuf":
        return None
    values = axis.whole()
    if not np.isfinite(values).all():
        raise InputError(f"coordinates {axis.name!r} are not all numbers; the file is damaged: copy it again")
    return values


def _axis_entry(axis: Variable) -> AxisEntry:
    return AxisEntry(name=axis.name, dtype=axis.dtype.name, attributes=attribute_entries(axis.attributes, _HIDDEN))


def _layers(file: ArrayFile, main: Variable, turned: bool) -> tuple[tuple[LayerEntry, ...], tuple[ReadWindow, ...]]:
    """The values, then what is known of them cell by cell."""
    named = set(text(main.attributes, "ancillary_variables").split())
    beside = [
        v
        for v in file.variables.values()
        if v.name != main.name
        and v.dims == main.dims
        and v.dtype.name in TYPES
        and (v.name in named or _is_companion(v))
    ]
    found: list[tuple[Variable, str]] = [(main, "elevation")]
    for variable in beside:
        whole = variable.dtype.kind in "iu" and not _UNCERTAINTY.search(variable.name)
        role = "source" if whole or _SOURCE.search(variable.name) else "uncertainty"
        if role not in {taken for _, taken in found}:
            found.append((variable, role))
    entries = tuple(_layer(file, variable, role) for variable, role in found)
    return entries, tuple(_window_of(variable, turned) for variable, _ in found)


def _layer(file: ArrayFile, variable: Variable, role: str) -> LayerEntry:
    own = variable.attributes
    fills = [own[name] for name in ("_FillValue", "missing_value") if name in own]
    if file.form.startswith("netcdf") and "_FillValue" not in own and variable.dtype.name in NETCDF_FILLS:
        fills.append(variable.dtype.type(NETCDF_FILLS[variable.dtype.name]))
    numeric = [fill for fill in fills if np.asarray(fill).dtype.kind in "iuf"]
    scale, offset = number(own, "scale_factor"), number(own, "add_offset")
    return LayerEntry.model_validate(
        {
            "name": variable.name,
            "role": role,
            "dtype": variable.dtype.name,
            "fills": fill_numbers(numeric, variable.dtype),
            "scale": 1.0 if scale is None else scale,
            "offset": 0.0 if offset is None else offset,
            "attributes": attribute_entries(own, _HIDDEN),
        }
    )


def _window_of(variable: Variable, turned: bool) -> ReadWindow:
    leading = tuple(slice(0, 1) for _ in variable.shape[:-2])

    def read(rows: slice, columns: slice) -> NDArray[Any]:
        last = (columns, rows) if turned else (rows, columns)
        values = variable.read((*leading, *last))
        values = values.reshape(values.shape[-2:])
        return np.ascontiguousarray(values.T) if turned else values

    return read


def _declared_crs(mapping: Variable | None, main: Variable, file: ArrayFile) -> str | None:
    """What a file says of its reference system, as WKT; None where it says nothing."""
    for attributes in _mappings(mapping, main, file):
        for name in ("crs_wkt", "spatial_ref", "esri_pe_string"):
            if found := text(attributes, name):
                return found
        code = text(attributes, "epsg_code") or text(attributes, "EPSG")
        if code:
            return code if ":" in code else f"EPSG:{code}"
        if text(attributes, "grid_mapping_name") == "latitude_longitude":
            return _ellipsoid(attributes)
    return None


def _mappings(mapping: Variable | None, main: Variable, file: ArrayFile) -> Iterable[Mapping[str, Any]]:
    if mapping is not None:
        yield mapping.attributes
    elif "spatial_ref" in file.variables:
        yield file.variables["spatial_ref"].attributes
    yield {name: value for name, value in main.attributes.items() if name in {"crs_wkt", "spatial_ref", "epsg_code"}}


def _ellipsoid(attributes: Mapping[str, Any]) -> str | None:
    axis, flattening = number(attributes, "semi_major_axis"), number(attributes, "inverse_flattening")
    if axis is None or (abs(axis - 6378137) < 1e-6 and abs((flattening or 0) - 298.257223563) < 1e-8):
        return "EPSG:4326"
    return f"+proj=longlat +a={axis!r} +rf={flattening!r} +no_defs" if flattening else f"+proj=longlat +R={axis!r}"


def _is_geographic(columns: Variable | None, crs: str | None) -> bool:
    if columns is not None and "degree" in text(columns.attributes, "units").lower():
        return True
    if columns is not None and columns.name.lower() in {"lon", "longitude"}:
        return True
    return crs is not None and crs.startswith(("GEOGCRS", "GEODCRS"))


def _registration(
    file: ArrayFile, main: Variable, rows: Variable | None, y: NDArray[Any] | None
) -> Literal["pixel", "gridline"]:
    """GMT says it outright; a range of coordinates from edge to edge means cells, a row on a pole means nodes."""
    for attributes in (file.attributes, main.attributes):
        if (offset := number(attributes, "node_offset")) is not None:
            return "pixel" if offset else "gridline"
    if rows is not None and y is not None and len(y) > 1:
        stated = np.asarray(rows.attributes.get("actual_range", ()))
        if stated.size == 2 and stated.dtype.kind in "iuf":
            wider = abs(float(stated[1]) - float(stated[0])) - abs(float(y[-1]) - float(y[0]))
            return "pixel" if wider > abs(float(y[1]) - float(y[0])) / 2 else "gridline"
        if float(np.abs(y).max()) == 90:
            return "gridline"
    return "gridline" if "GMT_version" in file.attributes else "pixel"


def _positive(main: Variable) -> Literal["up", "down"]:
    said = text(main.attributes, "positive").lower()
    if said in {"up", "down"}:
        return "up" if said == "up" else "down"
    names = (main.name, text(main.attributes, "standard_name"))
    return "down" if any(_DEPTHS.search(name) for name in names) else "up"
