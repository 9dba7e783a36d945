"""What a job says about grids, and what a dataset keeps of each grid so that it can be written back: a `GridEntry`."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from tokenshard.spec.base import SourceSpec, StoredDocument, digest

HALO = 64
"""Cells of the neighbourhood that come with a tile."""
Factor = Annotated[int, Field(ge=1, le=64)]
TVU_ORDERS = {
    "exclusive": (0.15, 0.0075),
    "special": (0.25, 0.0075),
    "1a": (0.5, 0.013),
    "1b": (0.5, 0.013),
    "2": (1.0, 0.023),
}
"""Order of IHO S-44 (edition 6) -> (a in metres, b) of TVU(d) = sqrt(a² + (b d)²), at 95 %."""
GRID_EXTENSIONS = ("nc", "nc4", "cdf", "grd", "tif", "tiff", "asc", "bag", "h5")


def checked_bound(value: object) -> object:
    """`none`, `lossless`, `abs:E` or `tvu:ORDER,SHARE`; ValueError says what is expected."""
    if not isinstance(value, str) or value in {"none", "lossless"}:
        return value
    kind, _, rest = value.partition(":")
    order, _, share = rest.partition(",")
    number = rest if kind == "abs" else share
    try:
        good = math.isfinite(float(number)) and float(number) > 0
    except ValueError:
        good = False
    if not good or kind not in {"abs", "tvu"} or (kind == "tvu" and order not in TVU_ORDERS):
        raise ValueError(
            f"bound {value!r}: expected none, lossless, abs:E (E in the unit of the values, metres for heights) or "
            f"tvu:ORDER,SHARE with an order of {', '.join(TVU_ORDERS)} and a share of its TVU, e.g. tvu:1a,0.1"
        )
    return value


Bound = Annotated[str, BeforeValidator(checked_bound)]


class GridSourceSpec(SourceSpec):
    """Grids of a conversion job: files, or Zarr folders, with one raster each."""

    variable: str | None = Field(
        default=None, description="variable with the values (NetCDF, Zarr), or number of the band (GeoTIFF: 1)"
    )
    tile: int = Field(default=256, ge=16, le=4096, multiple_of=16, description="cells of a tile's side")
    levels: tuple[Factor, ...] = Field(
        default=(1,),
        min_length=1,
        description="by which factors grids are also reduced: 1 is the grid itself; others hold means of cells and "
        "the shoalest of them",
    )
    crs: str | None = Field(
        default=None, description="coordinate reference system of grids that declare none: EPSG:CODE or WKT"
    )
    extensions: tuple[str, ...] = Field(
        default=GRID_EXTENSIONS, min_length=1, description="file name extensions taken for grids, any case"
    )

    @model_validator(mode="after")
    def _levels_ascend(self) -> Self:
        if list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels {list(self.levels)} must be in ascending order, each once")
        return self


class AttributeEntry(StoredDocument):
    """An attribute of a file: text, or numbers of a type. NaN and infinity are the texts `nan`, `inf`, `-inf`."""

    name: str
    type: str = Field(description="`text`, or the name of a numpy type")
    value: JsonValue = Field(description="text, a number, or a list of numbers")


class AxisEntry(StoredDocument):
    """A coordinate variable; its values are beside the entry."""

    name: str
    dtype: str
    attributes: tuple[AttributeEntry, ...] = ()


class LayerEntry(StoredDocument):
    """A raster of a grid: its values, their uncertainty, or where they come from."""

    name: str = Field(description="what the file calls it")
    role: Literal["elevation", "uncertainty", "source"]
    dtype: str = Field(description="numpy type of the stored values")
    fills: tuple[JsonValue, ...] = Field(default=(), description="stored values that mean: no value")
    scale: float = Field(default=1.0, description="value = stored value * scale + offset")
    offset: float = 0.0
    attributes: tuple[AttributeEntry, ...] = ()


class GridEntry(StoredDocument):
    """All of a grid but its cells: enough to write a file with the same values, coordinates and meaning."""

    uri: str = Field(description="relative to the source")
    form: Literal["netcdf3", "netcdf4", "zarr", "bag", "s102", "raster"]
    height: int = Field(ge=1, lt=1 << 31)
    width: int = Field(ge=1, lt=1 << 31)
    layers: tuple[LayerEntry, ...] = Field(min_length=1, description="the elevation comes first")
    crs: str | None = Field(default=None, description="WKT 2; null where the file declares none")
    crs_stated: bool = Field(default=False, description="the job says it, not the file")
    affine: tuple[float, float, float, float, float, float] | None = Field(
        default=None,
        description="(a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f, from the corner of the first "
        "stored cell; null where coordinates are not evenly spaced",
    )
    x: AxisEntry | None = Field(default=None, description="coordinates along columns, where the file has them")
    y: AxisEntry | None = Field(default=None, description="coordinates along rows")
    registration: Literal["pixel", "gridline"] = Field(description="coordinates are of cells' centres, or of nodes")
    rows: Literal["north-up", "south-up"] = Field(description="order of the stored rows: y falls, or y rises")
    geographic: bool = Field(description="coordinates are degrees of longitude and latitude")
    period: int | None = Field(default=None, description="columns of a full turn, where the grid goes around")
    units: str | None = None
    metres: float | None = Field(default=None, description="metres of one unit; null where it is no length")
    positive: Literal["up", "down"] = "up"
    vertical_datum: str | None = None
    attributes: tuple[AttributeEntry, ...] = Field(default=(), description="of the whole file")
    grid_mapping: str | None = Field(default=None, description="name of the variable that describes the CRS")
    grid_mapping_attributes: tuple[AttributeEntry, ...] = ()
    documents: dict[str, str] = Field(default_factory=dict, description="texts that belong to it, e.g. BAG metadata")
    source_bytes: int = Field(default=0, ge=0)
    source_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="of the file; of Zarr: empty")

    @property
    def id(self) -> str:
        """16 hex digits: the grid's name in the column `grid`."""
        return digest([self.source_sha256, self.uri, self.layers[0].name])[:16]

    @property
    def elevation(self) -> LayerEntry:
        return self.layers[0]

    def layer(self, role: str) -> LayerEntry | None:
        """The first layer with a role."""
        return next((layer for layer in self.layers if layer.role == role), None)
