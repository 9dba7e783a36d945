"""From files to a dataset and back: every cell, coordinate and attribute, in whole and in part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from grids.converting import convert_grids, decoder
from sources.grids.making import global_netcdf, opened, seafloor, whole, write_netcdf, write_s102, write_tiff
from tokenshard.errors import FormatError, SpecError
from tokenshard.grids.decode import point
from tokenshard.grids.export import export_grid
from tokenshard.shards.verify import verify
from tokenshard.store import Store

LON, LAT = np.linspace(10, 16.9, 70), np.linspace(50, 54.9, 50)


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_netcdf_comes_back_with_its_bits_coordinates_and_attributes(tmp_path: Path) -> None:
    import h5py
    import xarray

    values = np.rint(seafloor(50, 70)).astype(np.int16)
    values[10:30, 20:40] = -32768
    own = {"_FillValue": np.int16(-32768), "scale_factor": 0.001, "long_name": "relief", "units": "km"}
    tid = (np.arange(3500).reshape(50, 70) % 5 + 10).astype(np.uint8)
    write_netcdf(tmp_path / "a.nc", values, LON, LAT, attributes=own, tid=tid)
    convert_grids(tmp_path / "a.nc", tmp_path / "out")
    assert verify(Store(tmp_path / "out"), deep=True).ok
    done = export_grid(decoder(tmp_path / "out"), str(tmp_path / "b.nc"))
    assert (done.bands, done.max_error, done.bound) == (("elevation", "source"), 0, "lossless")
    with h5py.File(tmp_path / "a.nc") as a, h5py.File(tmp_path / "b.nc") as b:
        for name in ("elevation", "tid", "lat", "lon"):
            assert same(a[name][:], b[name][:])
    with xarray.open_dataset(tmp_path / "a.nc") as a, xarray.open_dataset(tmp_path / "b.nc") as b:
        assert a["elevation"].equals(b["elevation"])
        assert set(a["elevation"].attrs.items()) <= set(b["elevation"].attrs.items())
        assert b["elevation"].attrs["tokenshard_bound"] == "lossless"
        assert a["lat"].attrs == b["lat"].attrs
        assert "grid_mapping" not in b["elevation"].attrs


def test_geotiff_comes_back_with_its_bits_bands_and_reference_system(tmp_path: Path) -> None:
    import rasterio

    values = seafloor(50, 70).astype(np.float32)
    values[10:30, 20:40] = np.nan
    values[30, 20:30] = np.float32(-np.nan)
    values[31, 20:30] = -9999
    bands = [values, np.abs(values) / 50, np.round(values / 100)]
    write_tiff(tmp_path / "a.tif", bands, ("Elevation", "Uncertainty", "Contributor"), nodata=-9999)
    convert_grids(tmp_path / "a.tif", tmp_path / "out")
    export_grid(decoder(tmp_path / "out"), str(tmp_path / "b.tif"))
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
        assert all(same(a.read(band), b.read(band)) for band in (1, 2, 3))
        assert (a.crs, a.transform, a.nodata) == (b.crs, b.transform, b.nodata)
        assert a.descriptions == b.descriptions
        assert b.tags()["tokenshard_bound"] == "lossless"


@pytest.mark.parametrize("suffix", [".tif", ".nc"])
@pytest.mark.parametrize("name", ["BlueTopo_BC25M26L_20221102b.tiff", "F00788_SR_8m.bag", "F00788_SR_8m.tif"])
def test_surveys_come_back_whole(data_dir: Path, tmp_path: Path, name: str, suffix: str) -> None:
    import rasterio

    source = data_dir / "bathymetry" / name
    convert_grids(source, tmp_path / "out", tile=128)
    export_grid(decoder(tmp_path / "out"), str(tmp_path / f"b{suffix}"))
    before, after = opened(source), opened(tmp_path / f"b{suffix}")
    assert [layer.role for layer in before.entry.layers] == [layer.role for layer in after.entry.layers]
    for layer in range(len(before.entry.layers)):
        assert same(whole(before, layer), whole(after, layer))
    assert before.entry.affine is not None
    assert after.entry.affine is not None
    assert np.allclose(before.entry.affine, after.entry.affine, rtol=0, atol=1e-6)
    assert before.entry.rows == after.entry.rows
    if suffix == ".tif":
        with rasterio.open(source) as a, rasterio.open(tmp_path / "b.tif") as b:
            assert a.crs == b.crs
            assert before.entry.affine == after.entry.affine
    else:
        assert after.entry.crs == before.entry.crs


def test_s102_depths_stay_depths(tmp_path: Path) -> None:
    depth = -seafloor(40, 50).astype(np.float32)
    depth[:3] = 1e6
    write_s102(tmp_path / "102.h5", depth, np.full_like(depth, 0.5))
    convert_grids(tmp_path / "102.h5", tmp_path / "out", levels=(1, 2), bound="tvu:1a,0.1")
    export_grid(decoder(tmp_path / "out"), str(tmp_path / "b.nc"), kinds=["elevation", "source"])
    after = opened(tmp_path / "b.nc")
    assert after.entry.positive == "down"
    found, valid = whole(after), depth != 1e6
    assert (found[~valid] == 1e6).all()
    assert (np.abs(found - depth)[valid] <= 0.1 * np.hypot(0.5, 0.013 * depth[valid]) * (1 + 1e-6)).all()
    coarse = decoder(tmp_path / "out", level=2)
    shoalest = coarse.read(coarse.reference.whole, coarse.bands(["shoalest"]))[0]
    blocks = np.where(found == 1e6, np.inf, found).reshape(20, 2, 25, 2).min(axis=(1, 3))
    assert (shoalest[np.isfinite(blocks)] <= blocks[np.isfinite(blocks)]).all()


@pytest.fixture(scope="module")
def earth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.int16]]:
    """The whole earth, poles and both ends of the 180 degree line, within 5 metres at levels 1 and 2."""
    folder = tmp_path_factory.mktemp("earth")
    values = global_netcdf(folder / "earth.nc")
    convert_grids(folder / "earth.nc", folder / "out", bound="abs:5", levels=(1, 2))
    return folder / "out", values


@pytest.mark.parametrize("suffix", [".tif", ".nc"])
def test_a_box_across_180_degrees_is_one_piece(
    earth: tuple[Path, NDArray[np.int16]], tmp_path: Path, suffix: str
) -> None:
    out, values = earth
    path = tmp_path / f"box{suffix}"
    done = export_grid(decoder(out), str(path), (170, -20, -170, -10), ["elevation"])
    assert (done.height, done.width) == (6, 11)
    grid = opened(path)
    assert grid.entry.affine is not None
    x = grid.x if grid.x is not None else grid.entry.affine[2] + 2 * (np.arange(11) + 0.5)
    assert np.allclose(x, np.arange(170, 191, 2), atol=1e-9)
    columns = [175, 176, 177, 178, 179, 180, 1, 2, 3, 4, 5]  # 180 and -180 are one meridian, here as 180
    expected = values[35:41, columns]
    assert np.abs(whole(grid) - expected).max() <= 5


def test_a_pole_row_is_a_row_like_any_other(earth: tuple[Path, NDArray[np.int16]], tmp_path: Path) -> None:
    out, values = earth
    export_grid(decoder(out), str(tmp_path / "pole.nc"), (-180, 88, 180, 90), ["elevation", "lower", "upper"])
    grid = opened(tmp_path / "pole.nc", variable="elevation")
    assert grid.y is not None
    assert grid.y.tolist() == [88, 90]
    assert np.abs(whole(grid) - values[-2:]).max() <= 5


def test_level_2_has_its_own_coordinates_and_hides_no_shoal(
    earth: tuple[Path, NDArray[np.int16]], tmp_path: Path
) -> None:
    import rasterio

    out, values = earth
    coarse = decoder(out, level=2)
    export_grid(coarse, str(tmp_path / "two.tif"), None, ["elevation", "shoalest"])
    with rasterio.open(tmp_path / "two.tif") as file:
        mean, shoalest = file.read(1), file.read(2)
        x, y = file.xy(3, 7)
    assert (x, y) == (pytest.approx(-180 + 4 * 7 + 1, abs=1e-9), pytest.approx(-90 + 4 * 3 + 1, abs=1e-9))
    fine = decoder(out)
    decoded = fine.read(fine.reference.whole, fine.bands(["elevation"]))[0]
    for row, column in ((0, 0), (3, 7), (45, 90)):
        block = np.s_[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert abs(mean[row, column] - values[block].mean()) <= 5.5
    padded = np.pad(decoded.astype(int), ((0, 1), (0, 1)), constant_values=-32768)
    assert (shoalest >= padded.reshape(46, 2, 91, 2).max(axis=(1, 3))).all()


def test_points_agree_with_the_source_within_the_bound(earth: tuple[Path, NDArray[np.int16]]) -> None:
    out, values = earth
    draw, found = np.random.default_rng(6), decoder(out)
    for row, column in zip(draw.integers(0, 91, 40), draw.integers(0, 181, 40), strict=True):
        one = point(found, -180 + 2.0 * column, -90 + 2.0 * row)
        assert one.value is not None
        assert one.lower is not None
        assert one.upper is not None
        assert abs(one.value - values[row, column]) <= 5
        assert one.lower <= values[row, column] <= one.upper


def test_limits_hold_every_value_and_uncertainty_adds_up(tmp_path: Path) -> None:
    values = seafloor(50, 70).astype(np.float32)
    survey = np.full_like(values, 2.0)
    values[5:9] = survey[5:9] = np.nan
    write_tiff(tmp_path / "a.tif", [values, survey], ("Elevation", "Uncertainty"), nodata=np.nan)
    convert_grids(tmp_path / "a.tif", tmp_path / "out", bound="abs:3")
    found = decoder(tmp_path / "out")
    bands = found.bands(["elevation", "lower", "upper", "uncertainty"])
    _, lower, upper, uncertainty = found.read(found.reference.whole, bands)
    valid = ~np.isnan(values)
    assert ((lower <= values) & (values <= upper))[valid].all()
    assert np.isnan(lower[~valid]).all()
    assert (upper - lower)[valid].max() <= 6.01
    assert uncertainty[valid].max() <= np.hypot(2, 1.96 * 3 / 3**0.5) + 1e-4
    assert uncertainty[valid].min() > 2


def test_tokens_alone_give_a_rough_map(tmp_path: Path) -> None:
    values = seafloor(50, 70).astype(np.float32)
    write_tiff(tmp_path / "a.tif", [values])
    convert_grids(tmp_path / "a.tif", tmp_path / "out", bound="none")
    found = decoder(tmp_path / "out")
    rough, width = found.read(found.reference.whole, found.bands(None))
    assert np.sqrt(np.mean((rough - values) ** 2)) < 0.25 * values.std()
    held = np.abs(rough.astype(np.float64) - values) <= width * (1 + 1e-5)
    for row, column in ((0, 0), (3, 5), (5, 7)):
        assert held[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean() >= 0.9
    with pytest.raises(SpecError, match="has only tokens: use --band tokens,width"):
        found.bands(["elevation"])


def test_what_cannot_be_exported_is_refused(earth: tuple[Path, NDArray[np.int16]], tmp_path: Path) -> None:
    out, _ = earth
    with pytest.raises(SpecError, match=r"level 4 of earth\.nc is not stored; there are: 1, 2"):
        decoder(out, level=4)
    with pytest.raises(SpecError, match=r"no one grid 'mars\.nc'; choose one with --grid: earth\.nc"):
        decoder(out, "mars.nc")
    found = decoder(out)
    with pytest.raises(SpecError, match="unknown format; give a name that ends in one of"):
        export_grid(found, str(tmp_path / "a.png"))
    with pytest.raises(SpecError, match="no band 'depth'; there are"):
        export_grid(found, str(tmp_path / "a.tif"), kinds=["depth"])
    with pytest.raises(SpecError, match="no band that says where cells come from"):
        export_grid(found, str(tmp_path / "a.tif"), kinds=["source"])


def test_a_transcoded_dataset_still_knows_its_grids(tmp_path: Path) -> None:
    from tokenshard.engine.convert import run_conversion
    from tokenshard.spec.job import Transcode, build_job

    values = seafloor(40, 40).astype(np.float32)
    write_tiff(tmp_path / "a.tif", [values])
    convert_grids(tmp_path / "a.tif", tmp_path / "out")
    job = {"source": {"path": str(tmp_path / "out")}, "output": str(tmp_path / "moved"), "codec": "pack"}
    run_conversion(build_job(Transcode, {**job, "engine": {"kind": "local", "workers": 0}}))
    found = decoder(tmp_path / "moved")
    assert same(found.read(found.reference.whole, found.bands(None))[0], values)


def test_damage_to_the_description_of_grids_is_found(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", [seafloor(40, 40).astype(np.float32)])
    convert_grids(tmp_path / "a.tif", tmp_path / "out")
    (described,) = (tmp_path / "out" / "grids").iterdir()
    data = described.read_bytes()
    described.write_bytes(data[:-9] + b"x" + data[-8:])
    report = verify(Store(tmp_path / "out"))
    assert [error for error in report.errors if described.name in error and "SHA-256 differs" in error]
    with pytest.raises(FormatError, match=described.name):
        decoder(tmp_path / "out")


def test_appended_grids_keep_their_descriptions(tmp_path: Path) -> None:
    from tokenshard.engine.convert import Mode, run_conversion
    from tokenshard.engine.job_folder import JobFolder

    for name, seed in (("a", 0), ("b", 1)):
        folder = tmp_path / name
        folder.mkdir()
        write_tiff(folder / f"{name}.tif", [seafloor(40, 40, seed).astype(np.float32)])
    convert_grids(tmp_path / "a", tmp_path / "out")
    job = JobFolder(Store(tmp_path / "out"), 1).conversion()
    more = job.model_copy(update={"source": job.source.model_copy(update={"path": str(tmp_path / "b")})})
    run_conversion(more, Mode(append=True))
    assert verify(Store(tmp_path / "out"), deep=True).ok
    for name, seed in (("a.tif", 0), ("b.tif", 1)):
        found = decoder(tmp_path / "out", name)
        (values,) = found.read(found.reference.whole, found.bands(None))
        assert same(values, seafloor(40, 40, seed).astype(np.float32))
