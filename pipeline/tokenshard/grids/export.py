"""Writes a window of a grid to a file: GeoTIFF or CF NetCDF, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenshard.errors import SpecError
from tokenshard.grids.decode import Band, GridDecoder
from tokenshard.grids.export_netcdf import write_netcdf
from tokenshard.grids.export_tiff import BESIDE, write_tiff
from tokenshard.grids.georeference import Box, Window
from tokenshard.scratch import scratch_folder
from tokenshard.store import Store

Write = Callable[[Path, GridDecoder, Window, Sequence[Band]], None]
FORMATS: Mapping[str, Write] = {
    **dict.fromkeys((".tif", ".tiff"), write_tiff),
    **dict.fromkeys((".nc", ".nc4", ".grd"), write_netcdf),
}
"""End of a file's name -> what writes it."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: str
    grid: str
    level: int
    height: int
    width: int
    bands: tuple[str, ...]
    dtype: str
    bound: str
    max_error: float | None
    """measured, in the unit of the grid"""
    bytes: int


def export_grid(
    decoder: GridDecoder,
    to: str,
    box: Box | None = None,
    kinds: Sequence[str] | None = None,
    storage: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the cells of a box, or all of them. A file of that name is replaced once the new one is complete.

    Raises SpecError where the format, the bands or the box are not possible.
    """
    suffix = Path(to).suffix.lower()
    if suffix not in FORMATS:
        raise SpecError(f"{to}: unknown format; give a name that ends in one of {', '.join(FORMATS)}")
    window = decoder.reference.whole if box is None else decoder.reference.window(box)
    bands = decoder.bands(kinds)
    folder, slash, name = to.rpartition("/")
    store = Store(folder or ("/" if slash else "."), storage)
    with scratch_folder() as scratch:
        path = Path(scratch, name)
        try:
            FORMATS[suffix](path, decoder, window, bands)
        except ImportError as error:
            raise SpecError(f"writing grids needs {error.name or 'h5py'}: pip install 'tokenshard[grids]'") from error
        size = 0
        if suffix in {".tif", ".tiff"} and store.exists(name + BESIDE):
            store.delete(name + BESIDE)  # it belongs to the file that is replaced
        for file in sorted(Path(scratch).iterdir(), reverse=True):  # what lies beside comes first
            size += file.stat().st_size
            store.put(file.name, file)
    height, width = window.shape
    return Exported(
        path=to,
        grid=decoder.entry.uri,
        level=decoder.level,
        height=height,
        width=width,
        bands=tuple(band.kind for band in bands),
        dtype=np.result_type(*(np.dtype(band.dtype) for band in bands)).name,
        bound=str(decoder.facts["tokenshard_bound"]),
        max_error=decoder.max_error(window),
        bytes=size,
    )
