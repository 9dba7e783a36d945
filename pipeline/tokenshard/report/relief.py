"""The relief of a part of a grid as a picture: depths under a low sun, land in grey. Maps are drawn around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.grids.decode import GridDecoder
from tokenshard.grids.georeference import Box, Window
from tokenshard.grids.normalise import physical
from tokenshard.sources.grids.opened import valid_cells

MOST_CELLS = 24_000_000
SEA = ("#0b1d3a", "#12407a", "#1f6fae", "#4fa3cf", "#98d3e6", "#c9f0ec")
"""Colours from the deepest to the shallowest cell."""
LAND = ("#8d8b84", "#c6c3ba")
ALTITUDE, AZIMUTH = math.radians(45), math.radians(315)


@dataclass(frozen=True)
class Field:
    """Values ``[h, w]`` of a window with north up; ``extent``: west, east, south, north of its edges."""

    values: NDArray[np.float64]
    valid: NDArray[np.bool_]
    extent: tuple[float, float, float, float]
    geographic: bool


@dataclass(frozen=True)
class Relief:
    """A picture ``[h, w, 3]`` from 0 to 1, and the heights in metres of the first and last colour of :data:`SEA`."""

    picture: NDArray[np.float64]
    low: float
    high: float
    wet: bool
    dry: bool


def relief(decoder: GridDecoder, field: Field) -> Relief:
    """Cells below zero in the colours of the sea, others in those of the land."""
    height = field.values * _metres(decoder)
    shade = _hillshade(height, field)
    wet = field.valid & (height < 0)
    dry = field.valid & ~wet
    low, high = _depths(height[wet], bool(dry.any()))
    sea = _shaded(np.clip((height - low) / (high - low), 0, 1), SEA, shade)
    top = float(np.quantile(height[dry], 0.99)) if dry.any() else 1.0
    land = _shaded(np.clip(height / max(top, 1e-9), 0, 1), LAND, shade)
    return Relief(np.where(wet[..., None], sea, land), low, high, bool(wet.any()), bool(dry.any()))


def width_range(decoder: GridDecoder, field: Field, band: str) -> tuple[float, float]:
    """The least and greatest width that a map tells apart. Raises SpecError where none is above 0."""
    shown = field.valid & (field.values > 0)
    if not shown.any():
        raise SpecError(f"{decoder.entry.uri}: no {band} is above 0 there; nothing can be drawn")
    low, high = np.quantile(field.values[shown], (0.01, 0.995))
    low = max(float(low), float(high) / 1e4)
    return low, max(float(high), low * 1.01)


def colours_of(share: NDArray[np.float64], colours: Sequence[str]) -> NDArray[np.float64]:
    """Colours ``[..., 3]`` from 0 to 1 of shares from 0 to 1, evenly between those given as ``#rrggbb``."""
    channels = np.array([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in colours])
    places = share * (len(colours) - 1)
    return np.stack([np.interp(places, np.arange(len(colours)), channel) for channel in channels.T], axis=-1)


def window_of(decoder: GridDecoder, box: Box | None) -> Window:
    """The cells of a box, or all of them. Raises SpecError where these are too many for a map."""
    window = decoder.reference.whole if box is None else decoder.reference.window(box)
    height, width = window.shape
    if height * width > MOST_CELLS:
        raise SpecError(
            f"{decoder.entry.uri}: a map of {height:,} x {width:,} cells is too large; give a --bbox, or a --level "
            "that the dataset has"
        )
    return window


def read_field(decoder: GridDecoder, kind: str, window: Window) -> Field:
    """A band of a window, in the unit of the grid."""
    (band,) = decoder.bands([kind])
    (values,) = decoder.read(window, [band])
    if band.layer is not None:
        valid = valid_cells(values, band.layer)
        values = physical(np.where(valid, values, values.dtype.type(0)), band.layer)
    else:
        values = values.astype(np.float64)
        valid = np.isfinite(values)
    extent = _extent(decoder, window)
    if extent[2] > extent[3]:  # rows from south to north
        values, valid = values[::-1], valid[::-1]
        extent = (extent[0], extent[1], extent[3], extent[2])
    return Field(np.where(valid, values, 0.0), valid, extent, decoder.entry.geographic)


def _extent(decoder: GridDecoder, window: Window) -> tuple[float, float, float, float]:
    """West, east, and y below the last row and above the first."""
    height, width = window.shape
    x, y = decoder.reference.x, decoder.reference.y
    if x is None or y is None:
        return 0.0, float(width), float(height), 0.0
    columns = x.at(np.arange(window.columns.start, window.columns.stop)).astype(np.float64)
    rows = y.at(np.arange(window.rows.start, window.rows.stop)).astype(np.float64)
    across = (columns[-1] - columns[0]) / max(1, width - 1) or 1.0
    down = (rows[-1] - rows[0]) / max(1, height - 1) or -1.0
    return columns[0] - across / 2, columns[-1] + across / 2, rows[-1] + down / 2, rows[0] - down / 2


def _metres(decoder: GridDecoder) -> float:
    """What values are multiplied by to be heights in metres."""
    size = decoder.entry.metres or 1.0
    return size if decoder.entry.positive == "up" else -size


def _hillshade(height: NDArray[np.float64], field: Field) -> NDArray[np.float64]:
    """``[h, w]`` from 0 to 1: how bright a cell is with the sun in the north-west. Steep maps are flattened."""
    if min(height.shape) < 2:
        return np.full(height.shape, 0.7)
    filled = np.where(field.valid, height, np.median(height[field.valid]) if field.valid.any() else 0.0)
    down, across = np.gradient(filled)
    across = across * aspect(field)
    both = field.valid & np.roll(field.valid, 1, 0) & np.roll(field.valid, 1, 1)
    steep = np.hypot(down, across)[both]
    typical = float(np.quantile(steep, 0.9)) if steep.size else 1.0
    down, across = down / max(typical, 1e-9), across / max(typical, 1e-9)
    down, across = np.where(both, down, 0.0), np.where(both, across, 0.0)
    # The angle between the sun and what stands upright on the surface; rows go south.
    east, north, up = math.sin(AZIMUTH), math.cos(AZIMUTH), math.sin(ALTITUDE)
    light = (math.cos(ALTITUDE) * (north * down - east * across) + up) / np.sqrt(1 + across**2 + down**2)
    bright: NDArray[np.float64] = np.clip(light, 0, 1)
    return bright


def _shaded(share: NDArray[np.float64], colours: Sequence[str], shade: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours ``[h, w, 3]``, darker away from the sun and lighter towards it."""
    flat = colours_of(share, colours)
    away = shade[..., None] / math.sin(ALTITUDE)
    lit: NDArray[np.float64] = np.where(away < 1, flat * (0.35 + 0.65 * away), flat + (1 - flat) * 0.6 * (away - 1))
    return np.clip(lit, 0, 1)


def aspect(field: Field) -> float:
    """Height of a degree of latitude over the width of one of longitude, in the middle of the map."""
    middle = (field.extent[2] + field.extent[3]) / 2
    return 1 / max(math.cos(math.radians(min(abs(middle), 80.0))), 0.1) if field.geographic else 1.0


def _depths(heights: NDArray[np.float64], coast: bool) -> tuple[float, float]:
    """Heights of the first and last colour of the sea: up to the water line where the map comes near it."""
    if not heights.size:
        return -1.0, 0.0
    low, high = (float(value) for value in np.quantile(heights, (0.002, 0.998)))
    high = 0.0 if coast or high > low / 4 else high
    return (low, high) if low < high else (high - 1.0, high)
