"""Planning opens each grid once and makes inputs of its tiles; what is no grid is a reject that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sources.grids.making import seafloor, write_netcdf, write_tiff, write_zarr
from tokenshard.errors import SpecError
from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.grids.sidecar import read_grids
from tokenshard.sources.grids.source import GridSource, open_grid_source
from tokenshard.sources.grids.tiles import GridTile
from tokenshard.spec.grids import GridSourceSpec

LON, LAT = np.linspace(10, 13.9, 40), np.linspace(50, 52.9, 30)


def source(path: Path | str, state: dict[str, Any] | None = None, **fields: Any) -> GridSource:
    return open_grid_source(GridSourceSpec(path=str(path), **{"tile": 16, **fields}), None, state)


def planned(found: GridSource) -> pa.Table:
    return pa.Table.from_batches(list(found.plan()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_netcdf(tmp_path / "a.nc", seafloor(30, 40).astype(np.float32), LON, LAT)
    write_tiff(tmp_path / "b.tif", [np.rint(seafloor(20, 20)).astype(np.int16)], nodata=-32768)
    write_zarr(tmp_path / "c.zarr", np.rint(seafloor(30, 40)).astype(np.int16), LON, LAT, 3)
    (tmp_path / "notes.txt").write_text("no grid")
    return tmp_path


def test_one_input_is_one_tile_of_one_level(folder: Path) -> None:
    table = planned(source(folder, levels=(1, 2)))
    keys = table["key"].to_pylist()
    assert len(keys) == len(set(keys)) == (6 + 2) + (4 + 1) + (6 + 2)
    assert keys[:3] == ["a.nc#1/0/0", "a.nc#1/0/1", "a.nc#1/0/2"]
    assert {"b.tif#2/0/0", "c.zarr#1/1/2"} <= set(keys)
    last = table.filter(pa.compute.equal(table["key"], "a.nc#1/1/2")).to_pylist()[0]
    assert (last["meta.y0"], last["meta.x0"], last["bytes"]) == (16, 32, 14 * 8 * 4)


def test_planning_twice_gives_the_same_plan_and_the_same_description(folder: Path) -> None:
    first, second = source(folder), source(folder)
    assert planned(first).equals(planned(second))
    assert first.sidecars() == second.sidecars()
    (sidecar,) = first.sidecars()
    grids = read_grids(sidecar.data, "here")
    assert sorted(grid.entry.uri for grid in grids.values()) == ["a.nc", "b.tif", "c.zarr"]
    a = next(grid for grid in grids.values() if grid.entry.uri == "a.nc")
    assert a.x is not None
    assert np.array_equal(a.x, LON)
    assert len(a.entry.source_sha256) == 64


def test_a_worker_reads_from_the_plan_alone(folder: Path) -> None:
    driver = source(folder)
    table = planned(driver)
    found = [thunk() for thunk in source(folder, driver.state()).read(table)]
    tiles = [tile for tile in found if isinstance(tile, GridTile)]
    assert len(tiles) == table.num_rows
    values = seafloor(30, 40).astype(np.float32)
    assert np.array_equal(tiles[1].core, values[:16, 16:32])
    assert [tile.columns["grid"] for tile in tiles] == table["meta.grid"].to_pylist()


def test_what_is_no_usable_grid_is_rejected_with_its_name_and_a_remedy_and_the_rest_is_planned(folder: Path) -> None:
    data = (folder / "a.nc").read_bytes()
    (folder / "cut.nc").write_bytes(data[: len(data) // 2])
    (folder / "empty.nc").write_bytes(b"")
    write_netcdf(folder / "nan.nc", np.full((30, 40), np.nan, np.float32), LON, LAT)
    (folder / "text.tif").write_text("not a raster")
    write_netcdf(folder / "two.nc", seafloor(30, 40), LON, LAT, "first", second=seafloor(30, 40))
    found = source(folder)
    table = planned(found)
    rejects = {thunk.uri: thunk.message for thunk in (t() for t in found.read(table)) if isinstance(thunk, Reject)}
    assert set(rejects) == {"cut.nc", "empty.nc", "nan.nc", "text.tif", "two.nc"}
    assert all(message.startswith(f"{name}: ") for name, message in rejects.items())
    assert "copy it again" in rejects["cut.nc"]
    assert "no cell of 'elevation' has a value; choose another variable" in rejects["nan.nc"]
    assert "first, second; choose one with --variable" in rejects["two.nc"]
    assert table.num_rows == 6 + 4 + 6 + 5


def test_a_wrong_variable_name_is_told_before_any_work(tmp_path: Path) -> None:
    write_netcdf(tmp_path / "a.nc", seafloor(30, 40), LON, LAT)
    with pytest.raises(SpecError, match=r"a\.nc: .*no grid variable 'depth'; there are: elevation; choose one"):
        planned(source(tmp_path, variable="depth"))


def test_grids_of_an_object_store_are_read_by_ranges(folder: Path, s3_server: str, s3_url: str) -> None:
    from tokenshard.store import Store

    for name in ("a.nc", "b.tif"):
        Store(s3_url).put(name, folder / name)
    here, there = source(folder / "a.nc"), source(s3_url)
    table = planned(there)
    assert table.num_rows == 6 + 4
    remote = [thunk() for thunk in there.read(table)]
    assert all(isinstance(sample, Sample) for sample in remote)
    local = [thunk() for thunk in here.read(planned(here))]
    assert np.array_equal(remote[2].data, local[2].data)  # type: ignore[union-attr]
