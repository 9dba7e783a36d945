"""Where the cells of a grid are: coordinates of any level, and the rows and columns that a box or a point means.

Coordinates come from the arrays that the source had, where it had any, else from its affine map. A grid that goes
around the earth has columns for every longitude; beyond its last one come its first ones again, one turn further on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.sources.grids.opened import axis_step
from tokenshard.sources.grids.sidecar import StoredGrid
from tokenshard.sources.grids.tiles import level_size

TURN = 360.0
_EDGE = 1e-6
"""Share of a step by which a box may miss a cell's centre and still mean it."""

Box = tuple[float, float, float, float]
"""West, south, east, north, in the coordinates of the grid."""


@dataclass(frozen=True)
class Axis:
    """Coordinates of the cells of one axis, evenly spaced or not."""

    values: NDArray[Any]
    step: float | None
    """None: not evenly spaced"""
    period: int | None = None
    """cells of a full turn"""

    def at(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Coordinates of cells; those outside of the axis one turn or more away."""
        if self.period is None or (places.size and places.min() >= 0 and places.max() < len(self.values)):
            return self.values[places]
        outside = (places < 0) | (places >= len(self.values))
        turns = np.where(outside, places // self.period, 0)
        sign = 1 if (self.step or 0) > 0 else -1
        found: NDArray[Any] = self.values[np.where(outside, places % self.period, places)] + sign * TURN * turns
        return found.astype(self.values.dtype)


@dataclass(frozen=True)
class Window:
    """Rows and columns of a level of a grid; columns may go beyond its last one where it goes around the earth."""

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


class Georeference:
    """The place of the cells of one level of a grid."""

    def __init__(self, grid: StoredGrid, level: int) -> None:
        self.entry, self.level = grid.entry, level
        self.cell_size: float = level
        """cells of the grid that a cell covers along an axis"""
        self.height = level_size(grid.entry.height, level)
        self.width = level_size(grid.entry.width, level)
        period = grid.entry.period
        around = period // level if period and period % level == 0 else None
        affine = grid.entry.affine
        rotated = affine is not None and (affine[1] != 0 or affine[3] != 0)
        first, along = (None, None) if affine is None or rotated else (affine[2] + affine[0] / 2, affine[0])
        top, down = (None, None) if affine is None or rotated else (affine[5] + affine[4] / 2, affine[4])
        self.x = _axis(grid.x, first, along, grid.entry.width, level, around)
        self.y = _axis(grid.y, top, down, grid.entry.height, level, None)

    @property
    def whole(self) -> Window:
        return Window(slice(0, self.height), slice(0, self.width))

    def affine(self, window: Window) -> tuple[float, float, float, float, float, float] | None:
        """The affine map of a window; None where cells are not evenly spaced, or nothing is known of their place."""
        if self.entry.affine is None:
            return None
        a, b, c, d, e, f = self.entry.affine
        step = self.cell_size
        column, row = window.columns.start * step, window.rows.start * step
        return (a * step, b * step, c + a * column + b * row, d * step, e * step, f + d * column + e * row)

    def window(self, box: Box) -> Window:
        """The cells whose centres lie in a box; a west beyond the east means the box that crosses 180 degrees.

        Raises SpecError where there are none, or the grid has no coordinates.
        """
        if self.x is None or self.y is None:
            raise SpecError(f"{self.entry.uri}: has no coordinates along its rows; leave --bbox out")
        west, south, east, north = box
        if self.entry.geographic and west > east:
            east += TURN
        if not (west <= east and south <= north):
            raise SpecError(f"box {box}: expected WEST,SOUTH,EAST,NORTH")
        rows = _between(self.y, south, north)
        columns = self._columns(west, east)
        if rows is None or columns is None:
            raise SpecError(
                f"box {box}: no cell of {self.entry.uri} lies in it; it has {_range(self.x)} by {_range(self.y)}"
            )
        return Window(rows, columns)

    def _columns(self, west: float, east: float) -> slice | None:
        axis = self.x
        assert axis is not None, "checked by the caller"
        if not self.entry.geographic:
            return _between(axis, west, east)
        turned = [_between(axis, west + turn * TURN, east + turn * TURN) for turn in (0, 1, -1, 2, -2)]
        found = [columns for columns in turned if columns is not None]
        if axis.period is None or axis.step is None:
            return max(found, key=lambda columns: columns.stop - columns.start, default=None)
        low, high = (west, east) if axis.step > 0 else (east, west)
        start, stop = (_first(axis, low), _last(axis, high)) if east - west < TURN else (0, len(axis.values) - 1)
        if stop < start:
            return None
        shift = 0 if east - west >= TURN else start // axis.period * axis.period
        return slice(start - shift, stop + 1 - shift)

    def cell(self, x: float, y: float) -> tuple[int, int] | None:
        """Row and column of the cell that a point lies in; None where it lies in none."""
        if self.x is None or self.y is None:
            raise SpecError(f"{self.entry.uri}: has no coordinates along its rows; points of it cannot be looked up")
        row = _nearest(self.y, y)
        columns = (_nearest(self.x, x + turn * TURN) for turn in ((0, 1, -1, 2, -2) if self.entry.geographic else (0,)))
        column = next((found for found in columns if found is not None), None)
        return None if row is None or column is None else (row, column)


def _axis(
    values: NDArray[Any] | None, first: float | None, step: float | None, size: int, level: int, period: int | None
) -> Axis | None:
    if values is None:
        if first is None or step is None:
            return None
        values = first + step * np.arange(size)
    found = Axis(values, axis_step(values) if step is None else step, period)
    if level == 1:
        return found
    # the middle of the first and last cell of each block, as if the last block were whole
    starts = np.arange(0, size, level)
    ends = starts + level - 1
    spacing = found.step or (float(values[-1] - values[-2]) if size > 1 else 0.0)
    beyond = np.maximum(0, ends - (size - 1))
    middles = (values[starts].astype(np.float64) + values[np.minimum(ends, size - 1)] + beyond * spacing) / 2
    return replace(found, values=middles, step=None if found.step is None else found.step * level)


def _between(axis: Axis, low: float, high: float) -> slice | None:
    """The cells with coordinates from ``low`` to ``high``."""
    values = axis.values.astype(np.float64)
    edge = _EDGE * (abs(axis.step) if axis.step else float(np.abs(np.diff(values)).min()) if len(values) > 1 else 1.0)
    inside = np.flatnonzero((values >= low - edge) & (values <= high + edge))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else None


def _first(axis: Axis, low: float) -> int:
    """The number of the first cell at or behind a coordinate, on an axis without an end."""
    assert axis.step is not None, "only axes around the earth"
    return math.ceil((low - float(axis.values[0])) / axis.step - _EDGE)


def _last(axis: Axis, high: float) -> int:
    assert axis.step is not None, "only axes around the earth"
    return math.floor((high - float(axis.values[0])) / axis.step + _EDGE)


def _nearest(axis: Axis, value: float) -> int | None:
    values = axis.values.astype(np.float64)
    if len(values) == 1:
        return 0
    place = int(np.abs(values - value).argmin())
    neighbour = place + 1 if place + 1 < len(values) else place - 1
    half = abs(values[neighbour] - values[place]) / 2
    return place if abs(values[place] - value) <= half * (1 + 1e-9) else None


def _range(axis: Axis) -> str:
    return f"{float(axis.values[0]):g} to {float(axis.values[-1]):g}"
