"""A tile is what its grid has there, with neighbours around the earth; reduced grids hide no shoal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sources.grids.making import global_netcdf, opened, seafloor, write_netcdf, write_tiff
from tokenshard.sources.grids.tiles import inner, read_tile, tile_at, tiles
from tokenshard.spec.grids import HALO


def places(first: int, count: int, width: int, period: int) -> np.ndarray:
    """Columns of a grid that goes around the earth: its own where it has them."""
    columns = np.arange(first, first + count)
    outside = (columns < 0) | (columns >= width)
    return np.where(outside, columns % period, columns)


@pytest.mark.parametrize("gridline", [True, False])
def test_tiles_see_their_neighbours_across_180_degrees_and_repeat_poles(tmp_path: Path, gridline: bool) -> None:
    values = global_netcdf(tmp_path / "earth.nc", gridline=gridline)
    grid = opened(tmp_path / "earth.nc")
    height, width = values.shape
    for tile in tiles(height, width, 64, 1):
        found = read_tile(grid, tile)
        rows = np.clip(np.arange(tile.y0 - HALO, tile.y0 + tile.height + HALO), 0, height - 1)
        columns = places(tile.x0 - HALO, tile.width + 2 * HALO, width, 180)
        assert np.array_equal(found.data, values[np.ix_(rows, columns)])
        assert found.valid.all()


def test_tiles_of_other_grids_repeat_their_edges(tmp_path: Path) -> None:
    values = seafloor(50, 70).astype(np.float32)
    values[10:20, 30:50] = np.nan
    grid = opened(write_tiff(tmp_path / "a.tif", [values, np.abs(values)], ("depths", "uncertainty")))
    tile = tile_at(grid.entry, 32, 1, 1, 2)
    found = read_tile(grid, tile)
    padded = np.pad(values, HALO, mode="edge")
    window = padded[tile.y0 : tile.y0 + tile.height + 2 * HALO, tile.x0 : tile.x0 + tile.width + 2 * HALO]
    assert np.array_equal(found.data, window, equal_nan=True)
    assert np.array_equal(found.valid, ~np.isnan(window))
    assert np.array_equal(found.layers["uncertainty"], np.abs(values)[32:50, 64:70])


def test_every_cell_of_a_level_is_in_one_tile() -> None:
    seen = np.zeros((50, 67), int)
    for tile in tiles(199, 265, 32, 4):
        seen[tile.y0 : tile.y0 + tile.height, tile.x0 : tile.x0 + tile.width] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize(("kind", "positive"), [("int16", "up"), ("float32", "up"), ("float32", "down")])
def test_reduced_grids_hold_means_and_the_shoalest_cells(tmp_path: Path, kind: str, positive: str) -> None:
    values = seafloor(70, 90).astype(kind)
    values = -values if positive == "down" else values
    values[8:12, 12:20] = -9999
    lon, lat = np.linspace(10, 18.9, 90), np.linspace(50, 56.9, 70)
    attributes = {"positive": positive, "_FillValue": values.dtype.type(-9999)}
    grid = opened(write_netcdf(tmp_path / "a.nc", values, lon, lat, "z", attributes))
    tile = tile_at(grid.entry, 16, 4, 0, 0)
    found = read_tile(grid, tile)
    assert found.shoalest is not None
    mean = inner(found.data, tile)
    for row in range(tile.height):
        for column in range(tile.width):
            block = values[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].astype(float)
            block = block[block != -9999]
            if not len(block):
                assert mean[row, column] == found.shoalest[row, column] == -9999
                continue
            expected = np.rint(block.mean()) if kind == "int16" else np.float32(block.mean())
            assert mean[row, column] == pytest.approx(expected, abs=1e-3)
            assert found.shoalest[row, column] == (block.max() if positive == "up" else block.min())


def test_the_last_cells_of_a_level_stand_for_what_is_left(tmp_path: Path) -> None:
    values = seafloor(33, 45)
    lon, lat = np.linspace(10, 14.4, 45), np.linspace(50, 53.2, 33)
    grid = opened(write_netcdf(tmp_path / "a.nc", values, lon, lat))
    tile = tile_at(grid.entry, 16, 8, 0, 0)
    found = read_tile(grid, tile)
    assert (tile.height, tile.width) == (5, 6)
    assert inner(found.data, tile)[4, 5] == pytest.approx(values[32:, 40:].mean())
    assert found.shoalest is not None
    assert found.shoalest[4, 5] == values[32:, 40:].max()
