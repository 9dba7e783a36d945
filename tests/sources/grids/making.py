"""Small grids in every format, written by the libraries that users write them with."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.sources.grids.open import open_grid
from tokenshard.sources.grids.opened import OpenGrid
from tokenshard.spec.grids import GridSourceSpec
from tokenshard.store import Store


def seafloor(height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Depths in metres: hills of many sizes around -2,000."""
    draw = np.random.default_rng(seed)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    field = np.full((height, width), -2000.0)
    for wave in (97, 41, 17, 7):
        phase = draw.uniform(0, 2 * np.pi, 2)
        field += 6 * wave * np.sin(rows / wave * 2 + phase[0]) * np.cos(columns / wave * 2 + phase[1])
    return field + draw.normal(0, 2, (height, width))


def terrain(height: int, width: int, seed: int = 0, slope: float = 2.0) -> NDArray[np.float64]:
    """A fractal surface in metres around -3,000."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    spectrum = draw.normal(size=frequency.shape) + 1j * draw.normal(size=frequency.shape)
    field = np.fft.irfft2(spectrum / frequency**slope, s=(height, width))
    return -3000 + 400 * field / field.std()


def opened(path: Path, **spec: Any) -> OpenGrid:
    return open_grid(Store(path.parent), path.name, GridSourceSpec(path=str(path.parent), **spec))


def whole(grid: OpenGrid, layer: int = 0) -> NDArray[Any]:
    return grid.read(layer, slice(0, grid.entry.height), slice(0, grid.entry.width))


def write_netcdf(
    path: Path,
    values: NDArray[Any],
    lon: NDArray[Any],
    lat: NDArray[Any],
    name: str = "elevation",
    attributes: dict[str, Any] | None = None,
    **beside: NDArray[Any],
) -> Path:
    """A CF NetCDF 4 file by xarray; ``beside``: other variables on the same axes."""
    import xarray

    axes = {
        "lat": ("lat", lat, {"units": "degrees_north", "standard_name": "latitude"}),
        "lon": ("lon", lon, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    own = {"units": "m", **(attributes or {})}
    variables: dict[str, Any] = {name: (("lat", "lon"), values, own)}
    variables |= {title: (("lat", "lon"), array) for title, array in beside.items()}
    dataset = xarray.Dataset(variables, coords=axes)
    for title in (*variables, "lat", "lon"):
        dataset[title].encoding.setdefault("_FillValue", None)
    dataset.to_netcdf(path, engine="h5netcdf")
    return path


def global_netcdf(path: Path, step: float = 2.0, gridline: bool = True) -> NDArray[np.int16]:
    """A grid of the whole earth, with both poles and both ends of the 180 degree line where it is a gridline one."""
    lon = np.arange(-180, 180 + step, step) if gridline else np.arange(-180 + step / 2, 180, step)
    lat = np.arange(-90, 90 + step, step) if gridline else np.arange(-90 + step / 2, 90, step)
    turn = np.deg2rad(lon)[None]
    values = 3000 * np.cos(np.deg2rad(lat))[:, None] * np.sin(turn) * np.cos(3 * turn) - 1000
    stored = np.rint(values).astype(np.int16)
    write_netcdf(path, stored, lon, lat)
    return stored


def write_tiff(path: Path, bands: list[NDArray[Any]], names: tuple[str, ...] = (), **profile: Any) -> Path:
    """A GeoTIFF (or another format of GDAL) by rasterio, in UTM zone 31 N with cells of 30 m."""
    import rasterio
    from rasterio.transform import Affine

    height, width = bands[0].shape
    options = {
        "driver": "GTiff",
        "crs": "EPSG:32631",
        "transform": Affine(30, 0, 500_000, 0, -30, 5_800_000),
        **profile,
    }
    with rasterio.open(
        path, "w", height=height, width=width, count=len(bands), dtype=bands[0].dtype.name, **options
    ) as file:
        for number, band in enumerate(bands, 1):
            file.write(band, number)
            if names:
                file.set_band_description(number, names[number - 1])
    return path


def write_s102(path: Path, depth: NDArray[np.float32], uncertainty: NDArray[np.float32]) -> Path:
    """An S-102 surface as edition 2 describes it: records of depth and uncertainty, rows from south to north."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["productSpecification"] = "INT.IHO.S-102.2.1"
        file.attrs["horizontalCRS"] = np.int32(32631)
        file.attrs["verticalDatum"] = np.uint16(12)
        coverage = file.create_group("BathymetryCoverage")
        coverage.attrs["axisNames"] = ["Easting", "Northing"]
        instance = coverage.create_group("BathymetryCoverage.01")
        for name, value in {
            "gridOriginLongitude": 500_000.0,
            "gridOriginLatitude": 5_800_000.0,
            "gridSpacingLongitudinal": 8.0,
            "gridSpacingLatitudinal": 8.0,
        }.items():
            instance.attrs[name] = value
        instance.attrs["numPointsLongitudinal"] = np.uint32(depth.shape[1])
        instance.attrs["numPointsLatitudinal"] = np.uint32(depth.shape[0])
        instance.attrs["startSequence"] = "0,0"
        records = np.zeros(depth.shape, [("depth", "<f4"), ("uncertainty", "<f4")])
        records["depth"], records["uncertainty"] = depth, uncertainty
        instance.create_group("Group_001").create_dataset("values", data=records, chunks=True, compression="gzip")
        group = file.create_group("Group_F")
        group.create_dataset("featureCode", data=np.array([b"BathymetryCoverage"]))
        quality = file.create_group("QualityOfBathymetryCoverage")
        table = np.array([(1, b"2020-01-01"), (2, b"2021-06-30")], [("id", "<u4"), ("surveyDateRange.dateEnd", "S10")])
        quality.create_dataset("featureAttributeTable", data=table)
        ids = (np.arange(depth.size).reshape(depth.shape) % 2 + 1).astype(np.uint32)
        where = quality.create_group("QualityOfBathymetryCoverage.01/Group_001")
        where.create_dataset("values", data=ids)
    return path


def write_zarr(path: Path, values: NDArray[Any], lon: NDArray[Any], lat: NDArray[Any], version: int) -> Path:
    """A Zarr group after its specification, chunks of 16 x 16 cells packed by zlib (version 2) or gzip (3).

    (The zarr package cannot be imported where the benchmarks' zfpy is installed.)
    """
    path.mkdir()
    arrays = {"z": (values, ["lat", "lon"]), "lon": (lon, ["lon"]), "lat": (lat, ["lat"])}
    for name, (array, dims) in arrays.items():
        folder = path / name
        folder.mkdir()
        chunks = [16] * array.ndim
        units = {"lon": "degrees_east", "lat": "degrees_north", "z": "m"}[name]
        if version == 2:
            layout = {
                "zarr_format": 2,
                "shape": array.shape,
                "chunks": chunks,
                "dtype": array.dtype.str,
                "order": "C",
                "compressor": {"id": "zlib", "level": 1},
                "filters": None,
                "fill_value": -9999 if name == "z" else None,
            }
            (folder / ".zarray").write_text(json.dumps(layout))
            (folder / ".zattrs").write_text(json.dumps({"units": units, "_ARRAY_DIMENSIONS": dims}))
        else:
            layout = {
                "zarr_format": 3,
                "node_type": "array",
                "shape": array.shape,
                "data_type": array.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}],
                "attributes": {"units": units, **({"_FillValue": -9999} if name == "z" else {})},
                "fill_value": 0,
                "dimension_names": dims,
            }
            (folder / "zarr.json").write_text(json.dumps(layout))
        _write_chunks(folder, array, version)
    return path


def _write_chunks(folder: Path, array: NDArray[Any], version: int) -> None:
    padded = np.pad(array, [(0, -size % 16) for size in array.shape])
    for place in np.ndindex(*(size // 16 for size in padded.shape)):
        data = padded[tuple(slice(16 * number, 16 * number + 16) for number in place)].tobytes()
        packer = zlib.compressobj(wbits=15 if version == 2 else 31)
        name = ".".join(map(str, place)) if version == 2 else "c/" + "/".join(map(str, place))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(packer.compress(data) + packer.flush())
