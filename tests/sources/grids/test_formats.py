"""Every format gives the cells, the place and the meaning that its own library sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sources.grids.making import (
    global_netcdf,
    opened,
    seafloor,
    whole,
    write_netcdf,
    write_s102,
    write_tiff,
    write_zarr,
)
from tokenshard.errors import InputError
from tokenshard.sources.grids.attributes import attribute_values
from tokenshard.sources.grids.blosc import unpack_blosc
from tokenshard.sources.grids.opened import valid_cells

LON, LAT = np.linspace(10, 13.9, 40), np.linspace(50, 52.9, 30)


def test_netcdf_4_gives_stored_values_axes_and_attributes(tmp_path: Path) -> None:
    values = seafloor(30, 40).astype(np.float32)
    grid = opened(write_netcdf(tmp_path / "a.nc", values, LON, LAT, attributes={"comment": "synthetic"}))
    assert np.array_equal(whole(grid), values)
    assert np.array_equal(grid.x, LON)
    assert np.array_equal(grid.y, LAT)
    entry = grid.entry
    assert (entry.form, entry.rows, entry.geographic, entry.units, entry.crs) == (
        "netcdf4",
        "south-up",
        True,
        "m",
        None,
    )
    assert entry.affine is not None
    assert np.allclose(entry.affine, (0.1, 0, 9.95, 0, 0.1, 49.95), atol=1e-9)
    assert attribute_values(entry.elevation.attributes)["comment"] == "synthetic"


@pytest.mark.parametrize("version", [1, 2])
def test_netcdf_3_is_read_by_windows_also_along_a_growing_axis(tmp_path: Path, version: int) -> None:
    netcdf_file = pytest.importorskip("scipy.io").netcdf_file
    values = np.rint(seafloor(30, 41)).astype(np.int16)  # rows of 82 bytes: records are padded to 84
    with netcdf_file(tmp_path / "a.nc", "w", version=version) as file:
        file.createDimension("lat", None)
        file.createDimension("lon", 41)
        for name, kind, dims in (("z", "i2", ("lat", "lon")), ("other", "i2", ("lat", "lon")), ("lat", "f8", ("lat",))):
            variable = file.createVariable(name, kind, dims)
            variable[:] = {"z": values, "other": values + 1, "lat": LAT}[name]
        file.variables["z"].missing_value = np.int16(-1)
    grid = opened(tmp_path / "a.nc")
    assert grid.entry.elevation.name == "z"
    assert np.array_equal(whole(grid), values)
    assert np.array_equal(grid.read(0, slice(3, 9), slice(5, 6)), values[3:9, 5:6])
    assert np.array_equal(grid.y, LAT)
    assert grid.entry.elevation.fills[0] == -1


def test_gmt_grids_say_registration_packing_and_kilometres(data_dir: Path) -> None:
    folder = data_dir / "bathymetry"
    packed = opened(folder / "etopo5_north_pacific_dateline_packed_km.nc").entry
    assert (packed.elevation.scale, packed.units, packed.metres) == (0.001, "km", 1000)
    assert packed.registration == "gridline"
    assert opened(folder / "etopo2_south_atlantic_pixelreg.nc").entry.registration == "pixel"


def test_constant_fields_and_links_to_other_variables_are_not_taken_for_the_grid(data_dir: Path) -> None:
    grid = opened(data_dir / "bathymetry" / "earth-gravity-10arcmin.nc")
    assert grid.entry.elevation.name == "gravity"
    assert (grid.entry.period, grid.entry.width) == (2160, 2161)


def test_arrays_with_the_columns_first_are_turned(tmp_path: Path) -> None:
    import xarray

    values = seafloor(30, 40).astype(np.float32)
    dataset = xarray.Dataset({"z": (("x", "y"), values.T)}, {"x": LON, "y": LAT})
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    grid = opened(tmp_path / "a.nc")
    assert np.array_equal(grid.read(0, slice(4, 20), slice(30, 40)), values[4:20, 30:40])
    assert grid.entry.width == 40


def test_several_variables_need_a_choice(tmp_path: Path) -> None:
    values = seafloor(30, 40).astype(np.float32)
    path = write_netcdf(tmp_path / "a.nc", values, LON, LAT, "bedrock", ice=values + 1)
    with pytest.raises(InputError, match=r"several grids: bedrock, ice; choose one with --variable"):
        opened(path)
    assert np.array_equal(whole(opened(path, variable="ice")), values + 1)
    with pytest.raises(InputError, match=r"no grid variable 'sediment'; there are: bedrock, ice"):
        opened(path, variable="sediment")


def test_what_is_no_single_grid_says_what_it_is(tmp_path: Path) -> None:
    import xarray

    months = xarray.Dataset({"z": (("time", "y", "x"), np.zeros((12, 30, 40), np.float32))}, {"y": LAT, "x": LON})
    months.to_netcdf(tmp_path / "months.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="'z' has 12 x 30 x 40 cells, not two axes; write each of its grids to a file"):
        opened(tmp_path / "months.nc")
    track = xarray.Dataset({"z": (("ping",), np.zeros(99, np.float32))})
    track.to_netcdf(tmp_path / "track.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="points must be gridded first"):
        opened(tmp_path / "track.nc")


def test_uncertainty_and_type_identifiers_become_layers(tmp_path: Path) -> None:
    values = seafloor(30, 40).astype(np.float32)
    tid = (np.arange(1200).reshape(30, 40) % 3 + 10).astype(np.uint8)
    path = write_netcdf(tmp_path / "a.nc", values, LON, LAT, z_uncertainty=np.abs(values) / 100, tid=tid)
    grid = opened(path)
    assert [(layer.name, layer.role) for layer in grid.entry.layers] == [
        ("elevation", "elevation"),
        ("z_uncertainty", "uncertainty"),
        ("tid", "source"),
    ]
    assert np.array_equal(whole(grid, 2), tid)


FILLS: dict[str, Any] = {
    "declared": ({"_FillValue": np.float32(-32768)}, np.float32(-32768)),
    "missing_value": ({"missing_value": np.float32(-1e34)}, np.float32(-1e34)),
    "nan": ({}, np.float32(np.nan)),
    "never written": ({}, np.float32(9.96921e36)),
    "huge": ({}, np.float32(-1e34)),
}


@pytest.mark.parametrize("kind", FILLS)
def test_cells_without_a_value_are_told_from_values(tmp_path: Path, kind: str) -> None:
    attributes, fill = FILLS[kind]
    values = seafloor(30, 40).astype(np.float32)
    values[5:9, 7:20] = fill
    grid = opened(write_netcdf(tmp_path / "a.nc", values, LON, LAT, attributes=attributes))
    expected = np.ones((30, 40), bool)
    expected[5:9, 7:20] = False
    assert np.array_equal(valid_cells(whole(grid), grid.entry.elevation), expected)


def test_geotiff_gives_bands_reference_system_and_nodata(tmp_path: Path) -> None:
    values = seafloor(50, 60).astype(np.float32)
    bands = [values, np.abs(values) / 50, np.round(values / 100)]
    names = ("Elevation", "Uncertainty", "Contributor")
    grid = opened(write_tiff(tmp_path / "a.tif", bands, names, nodata=-9999))
    assert [layer.role for layer in grid.entry.layers] == ["elevation", "uncertainty", "source"]
    assert grid.entry.elevation.fills == (-9999.0,)
    assert grid.entry.affine == (30, 0, 500_000, 0, -30, 5_800_000)
    assert grid.entry.crs is not None
    assert "UTM zone 31N" in grid.entry.crs
    assert np.array_equal(grid.read(1, slice(3, 30), slice(2, 50)), bands[1][3:30, 2:50])
    assert np.array_equal(whole(opened(tmp_path / "a.tif", variable="Contributor")), bands[2])


def test_esri_ascii_grids_are_rasters_too(tmp_path: Path) -> None:
    values = np.round(seafloor(20, 30)).astype(np.int32)
    rows = "\n".join(" ".join(map(str, row)) for row in values)
    header = "ncols 30\nnrows 20\nxllcorner 3.5\nyllcorner 50\ncellsize 0.25\nNODATA_value -9999\n"
    (tmp_path / "a.asc").write_text(header + rows + "\n")
    grid = opened(tmp_path / "a.asc", crs="EPSG:4326")
    assert np.array_equal(whole(grid), values)
    assert grid.entry.affine == (0.25, 0, 3.5, 0, -0.25, 55)
    assert grid.entry.crs_stated
    assert grid.entry.elevation.fills == (-9999,)


def test_bag_keeps_its_rows_from_south_to_north(data_dir: Path) -> None:
    import h5py
    import rasterio

    path = data_dir / "bathymetry" / "F00788_SR_8m.bag"
    grid = opened(path)
    with h5py.File(path) as file:
        assert np.array_equal(whole(grid, 1), file["BAG_root/uncertainty"][:])
    with rasterio.open(path) as file:
        assert np.array_equal(whole(grid)[::-1], file.read(1))
        assert file.bounds.bottom == grid.entry.affine[5]  # type: ignore[index]
    assert grid.entry.rows == "south-up"
    assert grid.entry.documents["metadata.xml"].lstrip().startswith("<")


def test_variable_resolution_bags_are_refused_with_a_way_out(data_dir: Path) -> None:
    with pytest.raises(InputError, match=r"variable-resolution BAG.*gdal_translate -oo MODE=RESAMPLED_GRID"):
        opened(data_dir / "bathymetry" / "vr_metadata_layer_example.bag")


def test_s102_surfaces_have_depths_uncertainty_and_quality(tmp_path: Path) -> None:
    import rasterio

    depth = -seafloor(40, 50).astype(np.float32)
    depth[:3] = 1e6
    path = write_s102(tmp_path / "102.h5", depth, np.full_like(depth, 0.5))
    grid = opened(path)
    entry = grid.entry
    assert (entry.form, entry.positive, entry.rows) == ("s102", "down", "south-up")
    assert [layer.role for layer in entry.layers] == ["elevation", "uncertainty", "source"]
    assert np.array_equal(whole(grid), depth)
    assert not valid_cells(whole(grid), entry.elevation)[:3].any()
    assert "2021-06-30" in entry.documents["featureAttributeTable.json"]
    assert entry.crs is not None
    assert "UTM zone 31N" in entry.crs
    with rasterio.open(path) as file:  # GDAL's own reader, which turns the rows
        assert np.array_equal(file.read(1)[::-1][3:], depth[3:])
        assert entry.affine == (8, 0, file.bounds.left, 0, 8, file.bounds.bottom)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_groups_are_read_chunk_by_chunk(tmp_path: Path, version: int) -> None:
    values = np.rint(seafloor(30, 40)).astype(np.int16)
    values[2, 3] = -9999
    path = write_zarr(tmp_path / "a.zarr", values, LON, LAT, version)
    grid = opened(path)
    assert np.array_equal(whole(grid), values)
    assert np.array_equal(grid.read(0, slice(15, 17), slice(31, 40)), values[15:17, 31:40])
    assert np.array_equal(grid.x, LON)
    assert (valid_cells(whole(grid), grid.entry.elevation) == (values != -9999)).all()
    chunk = next(path.glob("z/0.0" if version == 2 else "z/c/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(InputError, match=r"Zarr chunk .* copy it again"):
        whole(opened(path))


BLOSC_LZ4 = bytes.fromhex(
    "0201210200020000000200009d00000014000000760000001400010014010100140201001403010014040100140501001406"
    "0100140701001408010014090100140a0100140b0100140c0100140d0100140e0100140f0100141001001411010014120100"
    "14130100141401001415010014160100141701001418010014190100141a0100131b0100501b1c1c1c1c0b0000001f000100"
    "e7500000000000"
)
"""256 int16 0 (nine times), 1 (nine times), …, bytes shuffled, packed by LZ4: made by numcodecs 0.16."""


def test_blosc_frames_are_unpacked() -> None:
    values = (np.arange(256) // 9).astype("<i2").tobytes()
    assert unpack_blosc(BLOSC_LZ4, 512) == values
    plain = bytes([2, 1, 2, 2]) + b"".join(size.to_bytes(4, "little") for size in (512, 512, 528)) + values
    assert unpack_blosc(plain, 512) == values
    for damaged in (BLOSC_LZ4[:10], BLOSC_LZ4[:-3], BLOSC_LZ4[:4] + b"\xff" * 4 + BLOSC_LZ4[8:]):
        with pytest.raises(ValueError, match="frame"):
            unpack_blosc(damaged, 512)


def test_files_that_end_too_early_say_so(tmp_path: Path) -> None:
    netcdf_file = pytest.importorskip("scipy.io").netcdf_file
    values = seafloor(30, 40).astype(np.float32)
    write_netcdf(tmp_path / "four.nc", values, LON, LAT)
    with netcdf_file(tmp_path / "three.nc", "w") as file:
        file.createDimension("lat", 30)
        file.createDimension("lon", 40)
        file.createVariable("z", "f4", ("lat", "lon"))[:] = values
    write_tiff(tmp_path / "tif.tif", [values])
    for name in ("four.nc", "three.nc", "tif.tif"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match=r"(damaged|truncated).*copy it again"):
            whole(opened(tmp_path / name))


@pytest.mark.parametrize("gridline", [True, False])
def test_grids_of_the_whole_earth_go_around_it(tmp_path: Path, gridline: bool) -> None:
    values = global_netcdf(tmp_path / "earth.nc", gridline=gridline)
    entry = opened(tmp_path / "earth.nc").entry
    assert entry.period == 180
    assert entry.width == values.shape[1] == (181 if gridline else 180)
    assert entry.registration == ("gridline" if gridline else "pixel")
