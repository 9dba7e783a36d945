"""Grids as maps: the relief of a window, or how sure its cells are, reduced to what a screen shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenshard.errors import SpecError
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import GridDecoder
from tokenshard.grids.georeference import Box, Window
from tokenshard.report.pictures import RAMP
from tokenshard.report.relief import SEA, aspect, colours_of, read_field, relief, width_range
from tokenshard.shards.once import OnceCache
from tokenshard.viewer.opened import Missing, Opened
from tokenshard.viewer.pictures import Pixels

MOST_CELLS = 1_500_000
BANDS = ("elevation", "tokens", "width", "conformal", "uncertainty")
RELIEFS = ("elevation", "tokens")
MAPS_KEPT = 8


@dataclass(frozen=True)
class Asked:
    """A map: of a grid by its id; ``level`` None is the finest that has few enough cells there."""

    grid: str
    band: str
    level: int | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Drawn:
    """A map and what the page says beside it."""

    png: bytes
    facts: dict[str, Any]


class Maps:
    """All maps of a dataset. Decoders keep tiles they have just decoded, so one map is drawn at a time."""

    def __init__(self, opened: Opened) -> None:
        self.dataset = GridDataset(opened.dataset)
        self.draw: Callable[[Asked], Drawn] = OnceCache(self._draw, MAPS_KEPT)
        self._decoder: Callable[[tuple[str, int]], GridDecoder] = OnceCache(self._decode, MAPS_KEPT)
        self._lock = Lock()

    def listed(self) -> list[dict[str, Any]]:
        """The grids, their levels and the bands that can be drawn of each."""
        found = []
        for name, grid in self.dataset.grids.items():
            levels = self.dataset.levels(name)
            decoder = self._decoder((name, levels[0]))
            found.append(
                {
                    "id": name,
                    "name": grid.entry.uri,
                    "height": grid.entry.height,
                    "width": grid.entry.width,
                    "levels": levels,
                    "bands": [band for band in BANDS if _has(decoder, band)],
                    "units": grid.entry.units,
                    "bound": decoder.bound,
                    "datum": grid.entry.vertical_datum,
                }
            )
        return found

    def decoder(self, grid: str, level: int) -> GridDecoder:
        """Raises Missing for a grid that the dataset has not, SpecError for such a level."""
        if grid not in self.dataset.grids:
            raise Missing(f"no grid {grid}; there are {', '.join(self.dataset.grids)}")
        return self._decoder((grid, level))

    def tile(self, sample: dict[str, Any]) -> Pixels:
        """The relief of one tile."""
        decoder, side = self.decoder(sample["grid"], sample["level"]), self.dataset.tile
        top, left = sample["tile_row"] * side, sample["tile_col"] * side
        window = Window(slice(top, top + sample["height"]), slice(left, left + sample["width"]))
        with self._lock:
            field = read_field(decoder, _relief_band(decoder), window)
            picture = relief(decoder, field).picture
        return np.where(field.valid[..., None], np.rint(picture * 255), 235).astype(np.uint8)

    def _decode(self, place: tuple[str, int]) -> GridDecoder:
        return GridDecoder(self.dataset, *place)

    def _draw(self, asked: Asked) -> Drawn:
        if asked.band not in BANDS:
            raise SpecError(f"no band {asked.band!r}; there are {', '.join(BANDS)}")
        decoder, window, whole = self._window(asked)
        with self._lock:
            field = read_field(decoder, asked.band, window)
            if asked.band in RELIEFS:
                drawn = relief(decoder, field)
                picture, low, high, colours, unit = drawn.picture, drawn.low, drawn.high, SEA, "m"
                text = "height" if drawn.wet else ""
            else:
                low, high = width_range(decoder, field, asked.band)
                share = np.log(np.clip(field.values, low, high) / low) / np.log(high / low)
                picture, colours, unit = colours_of(share, RAMP), RAMP, decoder.entry.units or ""
                text = {"width": "half-width of the tokens", "conformal": "conformal half-width"}.get(
                    asked.band, "uncertainty (95 %)"
                )
        values = field.values[field.valid]
        facts = {
            "band": asked.band,
            "level": decoder.level,
            "rows": window.shape[0],
            "columns": window.shape[1],
            "extent": [float(edge) for edge in field.extent],
            "whole": whole,
            "geographic": field.geographic,
            "placed": decoder.reference.x is not None and decoder.reference.y is not None,
            "stretch": aspect(field),
            "scale": {"low": low, "high": high, "unit": unit, "colours": colours, "text": text},
            "log": asked.band not in RELIEFS,
            "valid": float(field.valid.mean()),
            "least": float(values.min()) if len(values) else None,
            "greatest": float(values.max()) if len(values) else None,
            "units": decoder.entry.units,
        }
        return Drawn(_transparent(picture, field.valid), facts)

    def _window(self, asked: Asked) -> tuple[GridDecoder, Window, bool]:
        """The cells of a map, and whether that is all of the level. The middle of them, where they are too many."""
        levels = [asked.level] if asked.level is not None else self.dataset.levels(asked.grid) or [1]
        for level in levels:
            decoder = self.decoder(asked.grid, level)
            whole = decoder.reference.whole
            window = whole if asked.box is None else decoder.reference.window(asked.box)
            if window.shape[0] * window.shape[1] <= MOST_CELLS:
                break
        side = int(MOST_CELLS**0.5)
        window = Window(_middle(window.rows, side, window.shape), _middle(window.columns, side, window.shape))
        return decoder, window, window == whole


def maps(opened: Opened) -> Maps:
    """The maps of a dataset. Raises SpecError where it holds no grids."""
    return opened.part(Maps)


def tile_picture(opened: Opened, sample: dict[str, Any]) -> Pixels:
    """The relief of a tile."""
    return maps(opened).tile(sample)


def parse_box(text: str) -> Box | None:
    """``west,south,east,north``; nothing means everything. Raises SpecError."""
    if not text:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"box {text!r}: expected WEST,SOUTH,EAST,NORTH") from None
    if not np.isfinite([west, south, east, north]).all():
        raise SpecError(f"box {text!r}: expected finite numbers")
    return west, south, east, north


def _middle(span: slice, side: int, shape: tuple[int, int]) -> slice:
    if shape[0] * shape[1] <= MOST_CELLS or span.stop - span.start <= side:
        return span
    start = (span.start + span.stop - side) // 2
    return slice(start, start + side)


def _has(decoder: GridDecoder, band: str) -> bool:
    try:
        decoder.bands([band])
    except SpecError:
        return False
    return True


def _relief_band(decoder: GridDecoder) -> str:
    return "tokens" if decoder.bound == "none" else "elevation"


def _transparent(picture: NDArray[np.float64], valid: NDArray[np.bool_]) -> bytes:
    """A PNG in which cells without a value let the page through."""
    rgba = np.concatenate([np.rint(picture * 255), valid[..., None] * 255.0], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG", compress_level=3)
    return file.getvalue()
