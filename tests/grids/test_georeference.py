"""Boxes and points mean the cells a map would show there: across 180 degrees, at poles, at every level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshard.errors import SpecError
from tokenshard.grids.georeference import Georeference, Window
from tokenshard.sources.grids.opened import affine_of, full_turn
from tokenshard.sources.grids.sidecar import StoredGrid
from tokenshard.spec.grids import AxisEntry, GridEntry, LayerEntry


def stored(x: np.ndarray, y: np.ndarray, geographic: bool = True, arrays: bool = True) -> StoredGrid:
    dx, dy = float(x[1] - x[0]), float(y[1] - y[0])
    entry = GridEntry(
        uri="grid",
        form="netcdf4",
        height=len(y),
        width=len(x),
        layers=(LayerEntry(name="z", role="elevation", dtype="int16"),),
        affine=affine_of(float(x[0]), dx, float(y[0]), dy),
        x=AxisEntry(name="lon", dtype=x.dtype.name) if arrays else None,
        y=AxisEntry(name="lat", dtype=y.dtype.name) if arrays else None,
        registration="gridline",
        rows="south-up" if dy > 0 else "north-up",
        geographic=geographic,
        period=full_turn(dx, len(x)) if geographic else None,
    )
    return StoredGrid(entry, x if arrays else None, y if arrays else None)


EARTH = stored(np.arange(-180.0, 180.5, 0.5), np.arange(-90.0, 90.5, 0.5))
WRAPPED = stored(np.arange(1081) / 3 + 20 + 1 / 6, np.arange(540) / 3 - 90 + 1 / 6)


def turned(a: Any, b: Any) -> Any:
    """Distance of two longitudes, in degrees."""
    return np.abs((np.asarray(a) - np.asarray(b) + 180) % 360 - 180)


@given(st.floats(-360, 360), st.floats(0.5, 359), st.floats(-90, 89), st.floats(0.5, 90))
def test_a_box_gets_exactly_the_cells_whose_centres_lie_in_it(
    west: float, wide: float, south: float, high: float
) -> None:
    for grid in (EARTH, WRAPPED):
        reference = Georeference(grid, 1)
        east, north = west + wide, min(90.0, south + high)
        window = reference.window((west, south, east, north))
        assert reference.x is not None
        assert reference.y is not None
        x = reference.x.at(np.arange(window.columns.start, window.columns.stop))
        y = reference.y.at(np.arange(window.rows.start, window.rows.stop))
        assert np.allclose(np.diff(x), reference.x.step, atol=1e-9)
        assert ((x - x[0]) <= wide + 1e-6).all()
        assert (turned(x, west) + turned(x, east) <= min(wide, 360 - wide) + 1e-5).all() or wide > 180
        step = abs(reference.x.step or 0)
        assert len(x) in (math.floor(wide / step), math.floor(wide / step) + 1, round(wide / step) + 1)
        assert ((y >= south - 1e-6) & (y <= north + 1e-6)).all()
        assert len(y) == ((reference.y.values >= south - 5e-7) & (reference.y.values <= north + 5e-7)).sum()


def test_columns_beyond_the_last_are_the_first_ones_one_turn_further_on() -> None:
    reference = Georeference(EARTH, 1)
    window = reference.window((170, -20, -170, -10))
    assert reference.x is not None
    x = reference.x.at(np.arange(window.columns.start, window.columns.stop))
    assert (x[0], x[-1], len(x)) == (170, 190, 41)
    whole = reference.window((-180, -90, 180, 90))
    assert whole == Window(slice(0, 361), slice(0, 721))


def test_a_box_of_degrees_west_finds_a_grid_of_degrees_east() -> None:
    grid = stored(np.arange(160.0, 221.0), np.arange(0.0, 40.0))
    window = Georeference(grid, 1).window((-170, 10, -160, 12))
    assert window == Window(slice(10, 13), slice(30, 41))
    with pytest.raises(SpecError, match="no cell of grid lies in it; it has 160 to 220 by 0 to 39"):
        Georeference(grid, 1).window((-100, 10, -90, 12))


@pytest.mark.parametrize("arrays", [True, False])
def test_cells_of_a_level_lie_in_the_middle_of_those_they_cover(arrays: bool) -> None:
    grid = stored(np.arange(10.0, 20.0), np.arange(57.0, 50.0, -1.0), arrays=arrays)
    reference = Georeference(grid, 4)
    assert reference.x is not None
    assert reference.y is not None
    assert reference.x.values.tolist() == [11.5, 15.5, 19.5]
    assert reference.y.values.tolist() == [55.5, 51.5]
    affine = reference.affine(reference.whole)
    assert affine is not None
    assert [affine[2] + affine[0] * (column + 0.5) for column in range(3)] == [11.5, 15.5, 19.5]
    assert [affine[5] + affine[4] * (row + 0.5) for row in range(2)] == [55.5, 51.5]


def test_every_centre_is_looked_up_as_its_own_cell() -> None:
    reference = Georeference(WRAPPED, 1)
    assert reference.x is not None
    assert reference.y is not None
    for column in (0, 1, 539, 1079):
        assert reference.cell(float(reference.x.values[column]), 0.1) == (270, column)
        assert reference.cell(float(reference.x.values[column]) - 360, 0.1) == (270, column)
    assert reference.cell(30.0, 91.0) is None


def test_grids_without_coordinates_have_no_boxes() -> None:
    plain = EARTH.entry.model_copy(update={"affine": None, "x": None, "y": None})
    with pytest.raises(SpecError, match="has no coordinates along its rows; leave --bbox out"):
        Georeference(StoredGrid(plain), 1).window((0, 0, 1, 1))
