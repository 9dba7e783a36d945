"""One tile of a grid ⇄ the bytes of its bounded layer.

A stream holds a version, dtype and shape, which cells are valid, how values are numbered, the coded numbers and a
checksum. Sizes are checked before anything is allocated, and a stream that is damaged or of a newer version is a
FormatError, never a wrong grid.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError
from tokenshard.grids.bounded import wire
from tokenshard.grids.bounded.bound import Bound
from tokenshard.grids.bounded.mask import decode_mask, encode_mask
from tokenshard.grids.bounded.planes import decode_plane, encode_plane
from tokenshard.grids.bounded.prior import Prior, trained
from tokenshard.grids.bounded.quantise import Numbered, numberings
from tokenshard.grids.bounded.values import HIGHEST, TABLE, Bits, Lattice, Plane, Rungs, Steps, Table

VERSION, GUIDED = 1, 2
"""Versions of a stream: of its own, and one that was coded with a guide."""
DTYPES = tuple(np.dtype(name) for name in ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"))
MAX_CELLS = 1 << 27
_ALL, _NONE, _SOME, _MIXED = range(4)
_KINDS = (Lattice, Steps, Bits, Rungs)


@dataclass(frozen=True)
class EncodedTile:
    """The stream of a tile, and facts that encoding has measured.

    ``predictor``: ``causal``, ``hierarchical`` or ``none`` (no valid cell). ``max_error``: largest difference from the
    source over all valid cells, in its units, after the cast back to its dtype. ``bits_per_cell``: of the whole stream,
    a valid cell (0 without any).
    """

    stream: bytes
    predictor: str
    mapping: str
    max_error: float
    num_valid: int

    @property
    def bits_per_cell(self) -> float:
        return 8 * len(self.stream) / self.num_valid if self.num_valid else 0.0


def encode_tile(
    z: NDArray[Any],
    bound: Bound | str,
    *,
    nodata: float | None = None,
    valid: NDArray[np.bool_] | None = None,
    prior: Prior | None = None,
    guide: NDArray[np.float64] | None = None,
) -> EncodedTile:
    """Encode ``z`` ``[h, w]`` (an integer of at most 32 bits, float32 or float64) so that every valid cell keeps
    ``bound``.

    Cells that equal ``nodata`` (for floats NaN is always nodata) or are not ``valid`` are no values: decoding gives
    ``nodata`` there, NaN for floats without one, 0 for integers. Infinite values and values whose steps would be too
    many make a tile lossless. ``tvu`` bounds take heights in metres, positive up. InputError where the dtype or shape
    is not one of these.

    ``guide``: float64 ``[h, w]``, another reconstruction of the tile. Where it makes the stream smaller, the stream
    decodes with this very guide only; it can do so with values on steps or a lattice (``lossless`` and ``abs``).
    """
    bound = Bound.parse(bound) if isinstance(bound, str) else bound
    prior = prior or trained()
    z = np.ascontiguousarray(z).astype(np.asarray(z).dtype.newbyteorder("="), copy=False)
    if z.dtype not in DTYPES or z.ndim != 2 or not 0 < z.size <= MAX_CELLS:
        raise InputError(
            f"a tile of dtype {z.dtype} and shape {z.shape} cannot be encoded: it must have two dimensions, 1 to "
            f"{MAX_CELLS} cells and one of the dtypes {', '.join(map(str, DTYPES))}; cast it first"
        )
    fill = _fill(nodata, z.dtype)
    there = _valid(z, fill, nodata is not None, valid)
    head = bytes([VERSION, DTYPES.index(z.dtype)]) + wire.unsigned(z.shape[0]) + wire.unsigned(z.shape[1])
    num_valid = int(there.sum())
    head += _empty_cells(z, there, fill)
    if not num_valid:
        return EncodedTile(_sealed(head), "none", "none", 0.0, 0)
    exact = z[there]
    for ways in numberings(exact, bound):
        made = [_encode_numbered(way, exact, there, head, bound, prior, None) for way in ways]
        if guide is not None:
            made += [_encode_numbered(way, exact, there, head, bound, prior, guide) for way in ways if _follows(way)]
        kept = [tile for tile in made if tile is not None]
        if kept:
            return min(kept, key=lambda tile: len(tile.stream))
    raise AssertionError("the last ways to number values are lossless")


def decode_tile(
    stream: bytes,
    shape: tuple[int, int] | None = None,
    prior: Prior | None = None,
    guide: NDArray[np.float64] | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values ``[h, w]`` in the source's dtype and which of them are valid. FormatError where the stream is damaged, was
    written by a newer version, is not of ``shape``, or was coded with another ``guide``."""
    if len(stream) < 4 or stream[0] > GUIDED:
        newer = len(stream) >= 4
        raise FormatError(
            f"a tile's bounded stream has version {stream[0]}, this tokenshard reads {GUIDED}: update it"
            if newer
            else wire.DAMAGED.format("it is too short")
        )
    body, checksum = stream[:-4], int.from_bytes(stream[-4:], "little")
    if zlib.crc32(body) != checksum:
        raise FormatError(wire.DAMAGED.format("its checksum is wrong"))
    reader = wire.Reader(body)
    _, kind = reader.take(2)
    if kind >= len(DTYPES):
        raise FormatError(wire.DAMAGED.format("its dtype is unknown"))
    dtype, found = DTYPES[kind], (reader.unsigned(), reader.unsigned())
    if not 0 < found[0] * found[1] <= MAX_CELLS or (shape is not None and found != tuple(shape)):
        wanted = f", not {shape}" if shape is not None else ""
        raise FormatError(wire.DAMAGED.format(f"its shape is {found}{wanted}"))
    z, there = np.zeros(found, dtype), np.ones(found, np.bool_)
    cells = reader.take(1)[0]
    if cells > _MIXED:
        raise FormatError(wire.DAMAGED.format("its mask is of an unknown kind"))
    if cells != _ALL:
        z[...] = np.frombuffer(reader.take(dtype.itemsize), dtype)[0]
        there = np.zeros(found, np.bool_) if cells == _NONE else decode_mask(reader.section(), found)
    if cells == _MIXED:
        nan = reader.take(dtype.itemsize)
        z[decode_mask(reader.section(), found)] = np.frombuffer(nan, dtype)[0]
    if there.any():
        if stream[0] == GUIDED and (guide is None or guide.shape != found):
            raise FormatError("a tile's cells were coded together with its tokens, and decode with these alone")
        beside = guide if stream[0] == GUIDED else None
        z[there] = _decode_values(reader, there, dtype, prior or trained(), beside)
    if reader.at != len(body):
        raise FormatError(wire.DAMAGED.format("bytes follow its end"))
    return z, there


def _fill(nodata: float | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    """What stands where no value is, ``[1]`` in the dtype of the grid."""
    if nodata is None:
        return np.array([np.nan if dtype.kind == "f" else 0]).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        fill = np.array([nodata]).astype(dtype)
    if dtype.kind in "iu" and fill[0] != nodata:
        raise InputError(f"nodata {nodata} is no value of dtype {dtype}: give the fill value that the file declares")
    return fill


def _empty_cells(z: NDArray[Any], there: NDArray[np.bool_], fill: NDArray[Any]) -> bytes:
    """Which cells are valid, and what stands in the others: the fill value, or NaN beside it."""
    if there.all():
        return bytes([_ALL])
    nan = np.isnan(z) & ~there if z.dtype.kind == "f" else np.zeros(z.shape, np.bool_)
    mixed = bool(nan.any()) and not np.isnan(fill[0])
    if nan.any() and not mixed:
        fill = z[nan][:1]  # with its own sign and payload
    kind = _MIXED if mixed else (_SOME if there.any() else _NONE)
    data = bytes([kind]) + fill.tobytes()
    if kind != _NONE:
        data += wire.section(encode_mask(there))
    if mixed:
        data += z[nan][:1].tobytes() + wire.section(encode_mask(nan))
    return data


def _valid(z: NDArray[Any], fill: NDArray[Any], declared: bool, valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Which cells hold a value."""
    there = np.ones(z.shape, np.bool_) if valid is None else np.array(valid, np.bool_)
    if there.shape != z.shape:
        raise InputError(f"the mask has shape {there.shape}, its tile {z.shape}")
    if declared:
        there &= z != fill[0]
    if z.dtype.kind == "f":
        there &= ~np.isnan(z)
    return there


def _sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def _encode_numbered(
    numbered: Numbered,
    exact: NDArray[Any],
    there: NDArray[np.bool_],
    head: bytes,
    bound: Bound,
    prior: Prior,
    guide: NDArray[np.float64] | None,
) -> EncodedTile | None:
    """The stream of one numbering, or None where rounding to the dtype of the grid breaks the bound."""
    plane = np.zeros(there.shape, np.int64)
    plane[there] = numbered.plane
    beside, check = None, b""
    if guide is not None:
        assert isinstance(numbered.mapping, Lattice | Steps)
        beside = numbered.mapping.near(np.nan_to_num(guide))
        head, check = bytes([GUIDED]) + head[1:], _sum(beside)
    coded = encode_plane(plane, there, numbered.slack, prior, beside)
    decoded = numbered.mapping.values(coded.decoded[there], exact.dtype)
    with np.errstate(invalid="ignore"):
        error = np.abs(decoded.astype(np.float64) - exact.astype(np.float64))
    error[decoded == exact] = 0  # infinite values are their own
    if not _keeps(error, exact, bound):
        return None
    body = head + _mapping_header(numbered.mapping, prior) + check + coded.data
    name = type(numbered.mapping).__name__.lower()
    return EncodedTile(_sealed(body), coded.predictor, name, float(error.max()), int(there.sum()))


def _follows(numbered: Numbered) -> bool:
    """Whether a guide can be numbered likewise: by operations that are the same on every machine."""
    return isinstance(numbered.mapping, Lattice | Steps)


def _sum(guide: Plane) -> bytes:
    """The checksum of a guide in numbers."""
    return zlib.crc32(guide.astype("<i8").tobytes()).to_bytes(4, "little")


def _keeps(error: NDArray[np.float64], exact: NDArray[Any], bound: Bound) -> bool:
    """Whether errors are within the bound; values on a decimal lattice may miss it by their own rounding."""
    rounding = np.spacing(np.abs(exact)).astype(np.float64) if exact.dtype.kind == "f" and bound.kind == "abs" else 0.0
    if not error.any():
        return True
    return bool((error <= bound.allowed(exact) * (1 + 1e-9) + rounding).all())


def _mapping_header(mapping: Lattice | Steps | Bits | Rungs | Table, prior: Prior) -> bytes:
    if not isinstance(mapping, Table):
        return bytes([mapping.tag]) + mapping.header()
    steps = np.diff(mapping.ranked, prepend=mapping.ranked[:1])[None]
    listed = encode_plane(steps, np.ones(steps.shape, np.bool_), 0, prior)
    inner = bytes([mapping.tag]) + wire.unsigned(mapping.ranked.size) + wire.signed(int(mapping.ranked[0]))
    return inner + bytes([mapping.numbers.tag]) + mapping.numbers.header() + listed.data


def _read_mapping(reader: wire.Reader, prior: Prior) -> Lattice | Steps | Bits | Rungs | Table:
    tag = reader.take(1)[0]
    if tag < len(_KINDS):
        return _KINDS[tag].read(reader)
    size, first = reader.unsigned(), reader.signed()
    inner = reader.take(1)[0]
    if tag != Table.tag or not 0 < size <= TABLE or inner not in (Lattice.tag, Bits.tag) or abs(first) > HIGHEST:
        raise FormatError(wire.DAMAGED.format("its table of values is impossible"))
    numbers = (Lattice if inner == Lattice.tag else Bits).read(reader)
    steps = decode_plane(reader, np.ones((1, size), np.bool_), prior)
    return Table(first + np.cumsum(steps[0]), numbers)


def _decode_values(
    reader: wire.Reader,
    there: NDArray[np.bool_],
    dtype: np.dtype[Any],
    prior: Prior,
    guide: NDArray[np.float64] | None,
) -> NDArray[Any]:
    mapping = _read_mapping(reader, prior)
    beside = None
    if guide is not None:
        if not isinstance(mapping, Lattice | Steps):
            raise FormatError(wire.DAMAGED.format("its numbers follow no guide"))
        beside = mapping.near(np.nan_to_num(guide))
        if reader.take(4) != _sum(beside):
            raise FormatError("a tile's tokens are not those that its cells were coded with: they decode to nothing")
    plane: Plane = decode_plane(reader, there, prior, beside)[there]
    top = int(plane.max())
    if isinstance(mapping, Table) and top >= mapping.ranked.size:
        raise FormatError(wire.DAMAGED.format("a rank is beyond its table of values"))
    if isinstance(mapping, Rungs) and not mapping.fits(top):
        raise FormatError(wire.DAMAGED.format("its depths are too many"))
    if isinstance(mapping, Bits | Steps | Rungs) and dtype.kind != "f":
        raise FormatError(wire.DAMAGED.format("it holds bit patterns of floats for integers"))
    return mapping.values(plane, dtype)
