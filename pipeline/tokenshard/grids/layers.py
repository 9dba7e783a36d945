"""A layer of a tile as bytes: its values within a bound in their own type, and cells without a value bit by bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError
from tokenshard.grids.bounded import Bound, decode_tile, encode_tile
from tokenshard.grids.bounded.stream import GUIDED
from tokenshard.grids.nodata import decode_nodata, encode_nodata
from tokenshard.sources.grids.attributes import plain_number
from tokenshard.sources.grids.tiles import fill_of
from tokenshard.spec.grids import LayerEntry

LOSSLESS = Bound("lossless")
_LENGTH = 4
"""Bytes of the length of what is said of cells without value, where it is in one with the values."""


@dataclass(frozen=True)
class Coded:
    """A coded layer."""

    stream: bytes
    nodata: bytes
    max_error: float
    """largest error of a cell that has a value, in stored units"""
    predictor: str

    def joined(self) -> bytes:
        """As one value of a column."""
        return len(self.nodata).to_bytes(_LENGTH, "little") + self.nodata + self.stream


def code_layer(
    stored: NDArray[Any],
    valid: NDArray[np.bool_],
    layer: LayerEntry,
    bound: Bound,
    guide: NDArray[np.float64] | None = None,
) -> Coded:
    """Code stored values [height, width] within a bound in stored units.

    ``guide``: another reconstruction, in the unit of the grid, that may be needed to decode them.

    A tile in which a decoded value could be taken for a fill value is coded lossless.
    """
    nodata = encode_nodata(stored, valid, fill_of(layer))
    values = narrowed(np.where(valid, stored, stored.dtype.type(0)), layer)
    if bound.kind != "lossless" and values.dtype.kind in "iu" and _could_be_fill(values[valid], layer, bound):
        bound = LOSSLESS
    tile = encode_tile(values, bound, valid=valid, guide=_as_stored(guide, layer))
    return Coded(tile.stream, nodata, tile.max_error, tile.predictor)


def decode_layer(
    stream: bytes,
    nodata: bytes,
    layer: LayerEntry,
    shape: tuple[int, int],
    guide: NDArray[np.float64] | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Stored values [height, width] of a layer, and which of them are values. Raises FormatError on damage.

    ``guide``: that of :func:`code_layer`, where :func:`follows_tokens` says that it is needed.
    """
    values, valid = decode_tile(stream, shape, guide=_as_stored(guide, layer))
    kind = np.dtype(layer.dtype)
    if values.dtype != narrow_type(kind):
        raise FormatError(f"a tile of {values.dtype} values instead of {kind}")
    stored = np.where(valid, values.astype(kind), fill_of(layer))
    if kind.kind == "f":
        for fill in layer.fills:  # a real number that came out as a fill value moves to the next one
            number = kind.type(plain_number(fill))
            stored[valid & (stored == number)] = np.nextafter(number, kind.type(0) if number else kind.type(1))
    decode_nodata(nodata, stored, valid)
    return stored, valid


def follows_tokens(stream: bytes) -> bool:
    """Whether a stream decodes together with the tokens of its tile only."""
    return stream[:1] == bytes([GUIDED])


def _as_stored(guide: NDArray[np.float64] | None, layer: LayerEntry) -> NDArray[np.float64] | None:
    if guide is None or (layer.scale, layer.offset) == (1.0, 0.0):
        return guide
    return (guide - layer.offset) / layer.scale


def decode_joined(data: bytes, layer: LayerEntry, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """What :func:`decode_layer` gives of a joined layer."""
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH + length:
        raise FormatError("a layer of a tile is cut off")
    return decode_layer(data[_LENGTH + length :], data[_LENGTH : _LENGTH + length], layer, shape)


def narrow_type(kind: np.dtype[Any]) -> np.dtype[Any]:
    """The type that values of a type are coded in."""
    return np.dtype(np.int32) if kind.kind in "iu" and kind.itemsize > 4 else kind


def narrowed(values: NDArray[Any], layer: LayerEntry) -> NDArray[Any]:
    """Values in the type they are coded in. Raises InputError where they do not fit."""
    kind = narrow_type(values.dtype)
    if kind == values.dtype:
        return values
    found = values.astype(kind)
    if (found != values).any():
        raise InputError(f"{layer.name!r} has whole numbers of more than 32 bits; store it as real numbers")
    return found


def _could_be_fill(values: NDArray[Any], layer: LayerEntry, bound: Bound) -> bool:
    if not len(values):
        return False
    reach = float(bound.allowed(values).max())
    low, high = float(values.min()) - reach, float(values.max()) + reach
    return any(low <= plain_number(fill) <= high for fill in layer.fills)


def shifted_to_shoal(
    stored: NDArray[Any], valid: NDArray[np.bool_], rising: bool, bound: Bound
) -> tuple[NDArray[Any], Bound]:
    """Shoalest values moved so far that, decoded within the bound, none is deeper than any cell it stands for.

    Such a cell may come out shoaler than it is by the bound, and the shoalest value deeper by it.
    """
    if bound.kind == "lossless":
        return stored, bound
    error = bound.allowed(stored)
    if stored.dtype.kind == "f":
        error = error + np.abs(np.spacing(np.where(valid, stored, 0))).astype(np.float64)
    wanted = stored.astype(np.float64) + (1 if rising else -1) * 2 * (1 + 1e-6) * error
    if stored.dtype.kind in "iu":
        wanted = np.ceil(wanted) if rising else np.floor(wanted)
        limits = np.iinfo(stored.dtype)
        if (wanted[valid] < limits.min).any() or (wanted[valid] > limits.max).any():
            return stored, replace(bound, kind="lossless")
    with np.errstate(invalid="ignore", over="ignore"):
        moved = np.where(valid, wanted, 0).astype(stored.dtype)
    return np.where(valid, moved, stored), bound
