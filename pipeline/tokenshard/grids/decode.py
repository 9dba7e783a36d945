"""Windows of a grid as bands: elevation, its limits, uncertainty, and where each cell comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.grids.bounded import Bound
from tokenshard.grids.bounds import allowed
from tokenshard.grids.calibrations import StoredCalibration, choose_calibration
from tokenshard.grids.dataset import GridDataset, Part
from tokenshard.grids.georeference import Window
from tokenshard.grids.lattice import Lattice, own_cells, seen_codes
from tokenshard.grids.layers import decode_joined, decode_layer, follows_tokens
from tokenshard.grids.normalise import Normal, physical, restored
from tokenshard.grids.strata import check_by, group_of, least_roughness, roughness_of
from tokenshard.grids.widths import cell_widths, decode_widths
from tokenshard.shards.bounds import damage_reported
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.sources.grids.tiles import Tile, fill_of, level_size
from tokenshard.spec.grids import GridEntry, LayerEntry
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.grid_codes import Codes, LatticeTokenizer

BANDS = ("elevation", "shoalest", "lower", "upper", "uncertainty", "source", "tokens", "width", "conformal")
"""What can be decoded. elevation, shoalest, source: stored values; others: in the unit of the grid, float32."""
RECENT = 4
"""Decoded tiles that are kept."""
NORMAL_QUANTILE = 1.96
"""Standard deviations that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Band:
    """A band of an export."""

    kind: str
    name: str
    dtype: str
    fill: Any
    """what stands in cells without a value, in the band's type"""
    layer: LayerEntry | None
    """of the source, where the band holds stored values of one"""


class GridDecoder:
    """Decodes windows of one level of a grid."""

    def __init__(self, dataset: GridDataset, grid: str, level: int = 1, calibration: str | None = None) -> None:
        """``calibration``: id or level of the one that conformal widths come from, where there are several."""
        self.dataset, self.grid, self.level = dataset, grid, level
        self._calibration_name = calibration
        self.reference = dataset.georeference(grid, level)
        self.entry: GridEntry = dataset.grids[grid].entry
        self.bound = str(dataset.dataset.manifest.preprocess.get("bound", "lossless"))
        self._recent: dict[tuple[int, int], tuple[NDArray[Any], NDArray[np.bool_]]] = {}
        self._around: dict[tuple[int, int], tuple[NDArray[Any], float] | None] = {}

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a file with its bands says of them."""
        return {"tokenshard_bound": self.bound, "tokenshard_level": self.level}

    def bands(self, kinds: Sequence[str] | None) -> tuple[Band, ...]:
        """The bands asked for; by default the values and what the source has beside them.

        Raises SpecError for bands the dataset cannot give.
        """
        if kinds is None:
            beside = [layer.role for layer in self.entry.layers[1:] if layer.role != "source" or self.level == 1]
            kinds = ["tokens", "width"] if self.bound == "none" else ["elevation", *beside]
        return tuple(self._band(kind) for kind in dict.fromkeys(kinds))

    def _band(self, kind: str) -> Band:
        entry = self.entry
        if kind not in BANDS:
            raise SpecError(f"no band {kind!r}; there are: {', '.join(BANDS)}")
        missing = {"width": "width_q", "shoalest": "shoalest", "source": "source", "tokens": "mean"}.get(kind, "stream")
        if kind != "conformal" and self.bound != "none" and missing not in self.dataset.dataset.schema.names:
            raise SpecError(
                f"{self.dataset.dataset.store.root}: was rewritten without the column {missing!r}, which the band "
                f"{kind!r} comes from"
            )
        if kind == "conformal":
            self._check_conformal()
        elif self.bound == "none" and kind not in {"tokens", "width"}:
            raise SpecError(
                f"{entry.uri}: was converted with --bound none; it has only tokens: use --band tokens,width"
            )
        if kind == "shoalest" and self.level == 1:
            raise SpecError("level 1 holds the cells themselves; shoalest values are of the levels above it")
        layer = entry.elevation if kind in {"elevation", "shoalest"} else entry.layer(kind)
        if kind == "source" and (layer is None or self.level > 1):
            raise SpecError(f"{entry.uri}: level {self.level} has no band that says where cells come from")
        if layer is not None and (kind != "uncertainty" or self._lossless):
            name = layer.name if kind != "shoalest" else f"{layer.name}_shoalest"
            return Band(kind, name, layer.dtype, fill_of(layer), layer)
        dtype = "float64" if entry.elevation.dtype == "float64" else "float32"
        return Band(kind, f"{entry.elevation.name}_{kind}", dtype, np.dtype(dtype).type(np.nan), None)

    @property
    def _lossless(self) -> bool:
        return self.bound == "lossless"

    def read(self, window: Window, bands: Sequence[Band]) -> list[NDArray[Any]]:
        """One array [rows, columns] a band, in its type. Cells of tiles that were rejected have no value."""
        out = [np.full(window.shape, band.fill, band.dtype) for band in bands]
        for part in self.dataset.parts(self.grid, self.level, window, self._columns(bands)):
            with damage_reported(self._where(part)):
                tile = self._tile(part, bands)
            for band, values in zip(out, tile, strict=True):
                band[part.place] = values[part.inside]
        return out

    def strips(self, window: Window, bands: Sequence[Band]) -> Iterator[tuple[Window, list[NDArray[Any]]]]:
        """The window in strips, each of one row of tiles: memory holds one of them."""
        row = window.rows.start
        while row < window.rows.stop:
            end = min(window.rows.stop, (row // self.dataset.tile + 1) * self.dataset.tile)
            strip = Window(slice(row, end), window.columns)
            yield strip, self.read(strip, bands)
            row = end

    def max_error(self, window: Window) -> float | None:
        """The largest error that was measured in the tiles of a window, in the unit of the grid; None for tokens."""
        parts = self.dataset.parts(self.grid, self.level, window, ["max_error"])
        errors = [part.row["max_error"] for part in parts if part.row["max_error"] is not None]
        return max(errors, default=None if self.bound == "none" else 0.0)

    # -- one tile -----------------------------------------------------------------------------------------------------

    def _columns(self, bands: Sequence[Band]) -> list[str]:
        kinds = {band.kind for band in bands}
        found = []
        around = self._calibration.band if "conformal" in kinds else ""
        if kinds - {"source", "tokens", "width", "shoalest", "conformal"} or around == "elevation":
            found += ["stream", "nodata", "bound", "max_error"]
        found += [kind for kind in ("shoalest", "source") if kind in kinds]
        found += ["source"] if "conformal" in kinds and "tid" in self._calibration.by and "source" not in kinds else []
        found += ["uncertainty"] if "uncertainty" in kinds else []
        found += ["width_q"] if "width" in kinds else []
        return found + (["mean"] if "tokens" in kinds or around == "tokens" else [])

    def _tile(self, part: Part, bands: Sequence[Band]) -> list[NDArray[Any]]:
        row = part.row
        shape = (row["height"], row["width"])
        stored = valid = None
        if "stream" in row:
            stored, valid = self._cells(row, shape)
        found = []
        for band in bands:
            if band.kind == "tokens":
                values = self._from_tokens(row, shape)
            elif band.kind == "width":
                values = cell_widths(decode_widths(row["width_q"], shape), shape)
            elif band.kind == "conformal":
                values = self._conformal(row, shape, stored, valid)
            elif band.kind == "elevation" and stored is not None:
                values = stored
            elif band.layer is not None:
                values = decode_joined(row[band.kind], band.layer, shape)[0]
            else:
                assert stored is not None, "its columns were read"
                assert valid is not None
                values = self._limits(band.kind, row, stored, valid)
            found.append(np.asarray(values, band.dtype))
        return found

    def _cells(self, row: dict[str, Any], shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The elevation of a tile; the last ones are kept, for points that lie near each other."""
        place = (row["tile_row"], row["tile_col"])
        if place not in self._recent:
            guide = self._guide(*place, shape) if follows_tokens(row["stream"]) else None
            self._recent[place] = decode_layer(row["stream"], row["nodata"], self.entry.elevation, shape, guide)
            if len(self._recent) > RECENT:
                self._recent.pop(next(iter(self._recent)))
        return self._recent[place]

    def _guide(self, row: int, column: int, shape: tuple[int, int]) -> NDArray[np.float64]:
        """What the own tokens of a tile say of its cells."""
        found = self.dataset.tokens_of(self.grid, self.level, row, column)
        assert found is not None, "the tile has just been read"
        return own_cells(self._tokenizer, found[0], Normal(found[1], self._tokenizer.step, None), shape)

    def _limits(
        self, kind: str, row: dict[str, Any], stored: NDArray[Any], valid: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Limits or uncertainty of a tile. Limits are rounded outwards to their type."""
        entry = self.entry
        error = allowed(Bound.parse(row["bound"]), entry, np.where(valid, stored, stored.dtype.type(0)))
        error = np.minimum(error, row["max_error"])
        if kind == "uncertainty":
            values = self._uncertainty(row, error)
        else:
            values = physical(stored, entry.elevation) + (error if kind == "upper" else -error)
            if entry.elevation.dtype != "float64" and not self._lossless:
                outwards = np.float32(np.inf if kind == "upper" else -np.inf)
                values = np.nextafter(values.astype(np.float32), outwards).astype(np.float64)
        return np.where(valid, values, np.nan)

    def _uncertainty(self, row: dict[str, Any], error: NDArray[np.float64]) -> NDArray[np.float64]:
        """At 95 %: the survey's own and what coding adds to it, an error spread evenly within the bound."""
        coding = NORMAL_QUANTILE * error / math.sqrt(3)
        layer = self.entry.layer("uncertainty")
        if layer is None or row["uncertainty"] is None:
            return coding
        stored, valid = decode_joined(row["uncertainty"], layer, error.shape)
        own = np.where(valid, physical(stored, layer), np.nan)
        return np.hypot(own, coding)

    # -- conformal widths ---------------------------------------------------------------------------------------------

    @cached_property
    def _calibration(self) -> StoredCalibration:
        return choose_calibration(self.dataset.dataset, None, self._calibration_name)

    def _check_conformal(self) -> None:
        found = self._calibration
        if self.level > 1:
            raise SpecError(f"{self.entry.uri}: conformal widths were calibrated for level 1, not for {self.level}")
        if found.tokenizer != self.dataset.dataset.manifest.tokenizer.fingerprint:
            raise SpecError(f"calibration {found.id}: is of another tokenizer's tokens; calibrate again")
        if found.band == "elevation" and self.bound == "none":
            raise SpecError(f"calibration {found.id}: is of cells, and {self.entry.uri} holds tokens alone")
        check_by(self.entry, found.by)

    def _conformal(
        self,
        row: dict[str, Any],
        shape: tuple[int, int],
        stored: NDArray[Any] | None,
        valid: NDArray[np.bool_] | None,
    ) -> NDArray[np.float64]:
        """Half-widths of a tile, around its tokens or its cells."""
        found = self._calibration
        if found.band == "tokens":
            decoded = self._from_tokens(row, shape)
            there = np.isfinite(decoded)
        else:
            assert stored is not None, "its columns were read"
            assert valid is not None
            decoded, there = physical(np.where(valid, stored, stored.dtype.type(0)), self.entry.elevation), valid
        layer = self.entry.layer("source") if "tid" in found.by else None
        source = None if layer is None else decode_joined(row["source"], layer, shape)[0]
        group = group_of(decoded, source, self.entry, found.by)
        least = least_roughness(self.entry, self.token_step if found.band == "tokens" else None)
        width = found.calibration.widths(roughness_of(decoded, there, least), group)
        return np.where(there, width, np.nan)

    @cached_property
    def _tokenizer(self) -> LatticeTokenizer:
        dataset = self.dataset.dataset
        found = load_tokenizer(dataset.store, f"tokenizer/{dataset.manifest.tokenizer.fingerprint}")
        if not isinstance(found, LatticeTokenizer):
            raise SpecError(f"{dataset.store.root}: its tokens are of kind {found.spec.kind}: they decode to no grid")
        return found

    @property
    def token_step(self) -> float:
        """Steps of the means of patches, in the unit of the grid."""
        return self._tokenizer.step

    @cached_property
    def _lattice(self) -> Lattice:
        return Lattice.of(self.entry, self.level, self._tokenizer.patch)

    def _from_tokens(self, row: dict[str, Any], shape: tuple[int, int]) -> NDArray[np.float64]:
        """What the tokens of a tile say, and those of the patches around it."""
        normal = Normal(row["mean"], self._tokenizer.step, None)
        tile = Tile(self.level, row["tile_row"], row["tile_col"], row["y0"], row["x0"], *shape)
        codes = seen_codes(self._tokenizer, self._lattice, tile, self.dataset.tile, self._codes_of)
        codes.means[codes.there] -= normal.steps
        return restored(self._tokenizer.cells_within(codes, shape), normal)

    def _codes_of(self, row: int, column: int) -> Codes | None:
        """Codes of a tile, means from zero on; those of about three rows of tiles are kept."""
        place = (row, column)
        if place not in self._around:
            self._around[place] = self.dataset.tokens_of(self.grid, self.level, row, column)
            most = 3 * -(-level_size(self.entry.width, self.level) // self.dataset.tile) + RECENT
            if len(self._around) > most:
                self._around.pop(next(iter(self._around)))
        kept = self._around[place]
        if kept is None:
            return None
        ids, mean = kept
        codes = self._tokenizer.codes_of(ids)
        codes.means[codes.there] += Normal(mean, self._tokenizer.step, None).steps
        return codes

    def _where(self, part: Part) -> str:
        row = part.row
        return f"{self.dataset.dataset.store.root}: tile {row['level']}/{row['tile_row']}/{row['tile_col']}"


@dataclass(frozen=True)
class Point:
    """What a dataset knows of a point."""

    x: float
    y: float
    value: float | None
    """in the unit of the grid; None where the cell has none"""
    lower: float | None
    upper: float | None
    row: int
    column: int


def point(decoder: GridDecoder, x: float, y: float) -> Point:
    """The cell that a point lies in. Raises SpecError where it lies in none."""
    cell = decoder.reference.cell(x, y)
    if cell is None:
        raise SpecError(f"point {x},{y}: lies outside of {decoder.entry.uri}")
    row, column = cell
    window = Window(slice(row, row + 1), slice(column, column + 1))
    bands = decoder.bands(["elevation", "lower", "upper"])
    stored, lower, upper = decoder.read(window, bands)
    layer = decoder.entry.elevation
    if not valid_cells(stored, layer).all():
        return Point(x, y, None, None, None, row, column)
    value = float(physical(stored, layer)[0, 0])
    if not lower[0, 0] <= value <= upper[0, 0]:
        raise FormatError(f"{decoder.entry.uri}: limits of a cell do not hold its value")
    return Point(x, y, value, float(lower[0, 0]), float(upper[0, 0]), row, column)
