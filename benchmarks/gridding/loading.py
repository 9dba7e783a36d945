"""The real grids of the benchmark: arrays in their stored dtype, and which cells are valid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Dataset:
    """A file, its variable (a band for rasters), the value of empty cells and the unit."""

    file: str
    variable: str | int
    nodata: float | None = None
    unit: str = "m"


DATASETS = {
    "ETOPO1": Dataset("etopo1_bedrock_middle_america.nc", "Band1", -32767),
    "South China Sea": Dataset("etopo2022_1min_South_China_Sea.nc", "z"),
    "Gulf of Guinea": Dataset("etopo2022_1min_Gulf_of_Guinea.nc", "z"),
    "Arabian Sea": Dataset("etopo2022_1min_Arabian_Sea.nc", "z"),
    "S Atlantic": Dataset("etopo2_south_atlantic_pixelreg.nc", "z"),
    "North Pacific 5'": Dataset("etopo5_north_pacific_dateline_packed_km.nc", "z"),
    "global 10'": Dataset("earth-topography-10arcmin.nc", "topography"),
    "global 20'": Dataset("etopo20_global_wrapcol.cdf", "ROSE", -1e34),
    "geoid": Dataset("earth-geoid-10arcmin.nc", "geoid"),
    "gravity": Dataset("earth-gravity-10arcmin.nc", "gravity", unit="mGal"),
    "multibeam": Dataset("JD211_public_Release_1-4_UTM.bag", 1, 1e6),
    "F00788": Dataset("F00788_SR_8m.tif", 1, 9999),
    "BlueTopo": Dataset("BlueTopo_BC25M26L_20221102b.tiff", 1),
    "CUDEM": Dataset("cudem_sabine_648.nc", "Band1"),
    "Wadden": Dataset("waddensea_utm31n_30m.tif", 1),
}
"""By the name that tables print."""


def load(folder: Path, dataset: Dataset) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Stored values ``[h, w]`` (packed ones as they are) and the valid cells."""
    path = folder / dataset.file
    if isinstance(dataset.variable, int):
        import rasterio

        with rasterio.open(path) as raster:
            z = raster.read(dataset.variable)
    else:
        import xarray

        with path.open("rb") as file:
            engine = "scipy" if file.read(3) == b"CDF" else "h5netcdf"
        with xarray.open_dataset(path, engine=engine, mask_and_scale=False, decode_times=False) as opened:
            z = opened[dataset.variable].values
    z = np.ascontiguousarray(z).astype(z.dtype.newbyteorder("="), copy=False)
    valid = np.ones(z.shape, np.bool_) if dataset.nodata is None else z != z.dtype.type(dataset.nodata)
    return z, valid & ~np.isnan(z) if z.dtype.kind == "f" else valid
