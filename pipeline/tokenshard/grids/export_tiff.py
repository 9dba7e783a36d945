"""GeoTIFF: tiled, compressed, one band a layer, with everything GDAL keeps of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tokenshard.errors import SpecError
from tokenshard.grids.decode import Band, GridDecoder
from tokenshard.grids.georeference import Window
from tokenshard.sources.grids.attributes import attribute_values, plain_number

BLOCK = 256
BESIDE = ".aux.xml"
"""End of the name of the file that GDAL looks for beside a GeoTIFF."""
_RESERVED = {"AREA_OR_POINT", "TIFFTAG_RESOLUTIONUNIT", "TIFFTAG_XRESOLUTION", "TIFFTAG_YRESOLUTION"}


def write_tiff(path: Path, decoder: GridDecoder, window: Window, bands: Sequence[Band]) -> None:
    """Write bands of a window, a strip of tiles at a time.

    All bands of a GeoTIFF have one type: the smallest that holds each exactly. Raises SpecError where there is none, or
    cells are not evenly spaced.
    """
    import rasterio
    from rasterio.crs import CRS
    from rasterio.transform import Affine

    entry = decoder.entry
    affine = decoder.reference.affine(window)
    if affine is None and entry.x is not None:
        raise SpecError(f"{entry.uri}: its coordinates are not evenly spaced, which a GeoTIFF cannot say; write .nc")
    kind = _shared_type(entry.uri, bands)
    height, width = window.shape
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": len(bands),
        "dtype": kind.name,
        "compress": "deflate",
        "predictor": 3 if kind.kind == "f" else 2,
        "bigtiff": "if_safer",
        **({"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK} if min(height, width) >= BLOCK else {}),
    }
    if (nodata := _nodata(bands)) is not None:
        profile["nodata"] = nodata
    if affine is not None:
        profile["transform"] = Affine(*affine)
    if entry.crs is not None:
        profile["crs"] = CRS.from_wkt(entry.crs)
    with rasterio.open(path, "w", **profile) as file:
        file.update_tags(**_tags(decoder))
        for number, band in enumerate(bands, 1):
            _describe(file, number, band, entry.units)
        top = window.rows.start
        for strip, values in decoder.strips(window, bands):
            place = ((strip.rows.start - top, strip.rows.stop - top), (0, width))
            for number, array in enumerate(values, 1):
                file.write(array.astype(kind, copy=False), number, window=place)
    if document := _beside(path, decoder, bands):
        path.with_name(path.name + BESIDE).write_bytes(document)


def _beside(path: Path, decoder: GridDecoder, bands: Sequence[Band]) -> bytes | None:
    """What GDAL keeps in a file of its own: attribute tables, and a reference system that GeoTIFF keys cannot say."""
    import rasterio
    from rasterio.crs import CRS

    entry = decoder.entry
    root = _tables(entry.documents.get("aux.xml", ""), bands)
    if entry.crs is not None:
        wanted = CRS.from_wkt(entry.crs)
        with rasterio.open(path) as file:
            if file.crs != wanted:
                axes = "2,1" if entry.geographic else "1,2"
                ElementTree.SubElement(root, "SRS", dataAxisToSRSAxisMapping=axes).text = entry.crs
    return ElementTree.tostring(root, encoding="utf-8") if len(root) else None


def _tables(document: str, bands: Sequence[Band]) -> ElementTree.Element:
    """The parts of a document that belong to the bands, which are told by their descriptions."""
    root = ElementTree.Element("PAMDataset")
    numbers = {band.name: number for number, band in enumerate(bands, 1) if band.layer is not None}
    try:
        found = ElementTree.fromstring(document).findall("PAMRasterBand") if document else []
    except ElementTree.ParseError:
        return root
    for band in found:
        number = numbers.get((band.findtext("Description") or "").strip())
        if number is not None and band.find("GDALRasterAttributeTable") is not None:
            band.set("band", str(number))
            root.append(band)
    return root


def _shared_type(uri: str, bands: Sequence[Band]) -> np.dtype[Any]:
    kinds = [np.dtype(band.dtype) for band in bands]
    shared: np.dtype[Any] = np.result_type(*kinds)
    if not all(np.can_cast(kind, shared, "safe") for kind in kinds) or shared.name == "float16":
        names = ", ".join(kind.name for kind in kinds)
        raise SpecError(f"{uri}: bands of {names} have no type in common, which a GeoTIFF needs; write .nc")
    return shared


def _nodata(bands: Sequence[Band]) -> float | int | None:
    """The fill value of the first band, where its source declares one or it is NaN."""
    first = bands[0]
    if first.layer is None:
        return float("nan")
    if first.layer.fills:
        return plain_number(first.layer.fills[0])
    return float("nan") if np.dtype(first.dtype).kind == "f" else None


def _tags(decoder: GridDecoder) -> dict[str, str]:
    entry = decoder.entry
    own = {name: str(value) for name, value in attribute_values(entry.attributes).items() if name not in _RESERVED}
    own["AREA_OR_POINT"] = "Point" if entry.registration == "gridline" else "Area"
    return {**own, **{name: str(value) for name, value in decoder.facts.items()}}


def _describe(file: Any, number: int, band: Band, units: str | None) -> None:
    file.set_band_description(number, band.name)
    if units and band.kind != "tid":
        file.set_band_unit(number, units)
    if band.layer is not None:
        scales, offsets = list(file.scales), list(file.offsets)
        scales[number - 1], offsets[number - 1] = band.layer.scale, band.layer.offset
        if (band.layer.scale, band.layer.offset) != (1.0, 0.0):
            file.scales, file.offsets = scales, offsets
        tags = {name: str(value) for name, value in attribute_values(band.layer.attributes).items()}
        file.update_tags(number, **{name: value for name, value in tags.items() if not name.startswith("_")})
