"""An opened grid: its description, its coordinates, and windows of its stored values. Nothing is read as a whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from tokenshard.errors import InputError
from tokenshard.sources.grids.attributes import json_number, plain_number
from tokenshard.spec.grids import GridEntry, LayerEntry

ReadWindow = Callable[[slice, slice], NDArray[Any]]
"""(rows, columns), both inside the grid -> stored values in native byte order."""
HUGE = 1e30
"""Floating point values of this size and beyond mean: no value. Programs write -1e34, 9.97e36, 1.7e308, …"""
NETCDF_FILLS = {"float32": 9.969209968386869e36, "float64": 9.969209968386869e36, "int16": -32767, "int32": -2147483647}
"""What the NetCDF libraries leave in cells that were never written."""
TYPES = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"})
_METRES = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1.0),
    **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres"), 1000.0),
    **dict.fromkeys(("dm", "decimeter", "decimeters", "decimetre", "decimetres"), 0.1),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 0.01),
    **dict.fromkeys(("ft", "foot", "feet"), 0.3048),
    **dict.fromkeys(("us-ft", "us survey foot", "us survey feet"), 1200 / 3937),
    **dict.fromkeys(("fathom", "fathoms"), 1.8288),
}


@dataclass
class OpenGrid:
    """A grid whose file is open."""

    entry: GridEntry
    reads: tuple[ReadWindow, ...]
    """one a layer, in the order of the entry"""
    x: NDArray[Any] | None = None
    y: NDArray[Any] | None = None
    close: Callable[[], None] = lambda: None
    _lock: Lock = field(default_factory=Lock)

    def read(self, layer: int, rows: slice, columns: slice) -> NDArray[Any]:
        """Stored values of a layer. Raises InputError where the file does not hold what it says."""
        with self._lock:
            values = self.reads[layer](rows, columns)
        expected = (rows.stop - rows.start, columns.stop - columns.start)
        if values.shape != expected or values.dtype.name != self.entry.layers[layer].dtype:
            raise InputError(
                f"a window of {values.dtype} {list(values.shape)} instead of {self.entry.layers[layer].dtype} "
                f"{list(expected)}; the file is damaged: copy it again"
            )
        return values


def valid_cells(values: NDArray[Any], layer: LayerEntry) -> NDArray[np.bool_]:
    """Which stored values of a layer are values, not signs for the lack of one."""
    valid = np.ones(values.shape, np.bool_)
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            valid = np.asarray(np.abs(values) < HUGE)  # and not NaN
    for fill in layer.fills:
        number = plain_number(fill)
        if not math.isnan(number):
            valid &= values != values.dtype.type(number)
    return valid


def fill_numbers(values: Iterable[Any], dtype: np.dtype[Any]) -> tuple[JsonValue, ...]:
    """Fill values as an entry has them, each once; those that the type cannot hold stand in no cell."""
    found: list[JsonValue] = []
    for value in values:
        for item in np.asarray(value).ravel():
            with np.errstate(invalid="ignore", over="ignore"):
                own = item.astype(dtype) if isinstance(item, np.generic) else dtype.type(item)
            if dtype.kind != "f" and float(own) != float(item):
                continue
            if (number := json_number(own)) not in found:
                found.append(number)
    return tuple(found)


def metres_of(units: str | None) -> float | None:
    """Metres of one unit, a metre where none is said, None for other units. What follows, e.g. a datum, is ignored."""
    if not units:
        return 1.0
    words = (units or "").lower().replace(".", " ").split()
    for count in range(len(words), 0, -1):
        if (found := _METRES.get(" ".join(words[:count]))) is not None:
            return found
    return None


def axis_step(coordinates: NDArray[Any]) -> float | None:
    """The distance of evenly spaced coordinates; None where they are not evenly spaced."""
    count = len(coordinates)
    if count < 2:
        return None
    values = coordinates.astype(np.float64)
    step = (values[-1] - values[0]) / (count - 1)
    if not np.isfinite(step) or step == 0:
        return None
    error = np.abs(values - (values[0] + step * np.arange(count))).max()
    # what the type of the coordinates can hold, or a thousandth of a cell: text formats round to few digits
    tolerance = max(1e-3 * abs(step), 4 * float(np.spacing(np.abs(coordinates).max())))
    return float(step) if error <= tolerance and error < abs(step) / 4 else None


def full_turn(step: float | None, width: int) -> int | None:
    """Columns of 360 degrees, where a grid goes around the earth (a column may repeat the first one)."""
    if step is None:
        return None
    around = 360 / abs(step)
    period = round(around)
    return period if abs(around - period) < 0.05 and period <= width <= period + 1 and period > 1 else None


def affine_of(x0: float, dx: float, y0: float, dy: float) -> tuple[float, float, float, float, float, float]:
    """The map from (column, row) of cells' corners, given the centre of the first cell and the steps."""
    return (dx, 0.0, x0 - dx / 2, 0.0, dy, y0 - dy / 2)


def chosen_crs(declared: str | None, stated: str | None) -> tuple[str | None, bool]:
    """WKT 2 of what the file declares, else of what the job says; and whether it is the job that says it.

    Raises InputError for a text that is no coordinate reference system.
    """
    if declared:
        return wkt2(declared), False
    return (wkt2(stated), True) if stated else (None, False)


def wkt2(text: str) -> str:
    """WKT 2 of any text that PROJ understands: WKT, EPSG:CODE, a PROJ string."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return str(CRS.from_user_input(text).to_wkt(version="WKT2_2018"))
    except CRSError as error:
        raise InputError(f"not a coordinate reference system: {text[:100]!r}; give EPSG:CODE with --crs") from error


def vertical_datum(wkt: str | None) -> str | None:
    """The vertical part of a compound reference system, by its name."""
    found = re.search(r'VERT(?:CRS|_CS)\["([^"]+)"', wkt or "")
    return found[1] if found else None
