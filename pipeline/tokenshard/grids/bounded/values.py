"""Values of a grid as integers and back: lattices, tables, bit patterns, uniform steps and ladders of uncertainty.

A mapping numbers the values that a tile may hold after decoding. The numbers are what is predicted and coded, exactly
or to within ``slack`` of each; ``values`` turns them back with operations that IEEE 754 defines to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.grids.bounded import wire

Plane = NDArray[np.int64]
HIGHEST = (1 << 33) - 1
"""The largest number of a plane."""
TABLE = 65_536
"""Distinct values of a table, at most."""


class Mapping(Protocol):
    """Numbers of values. ``tag``: what it is called in a stream."""

    tag: ClassVar[int]

    def values(self, plane: Plane, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The values of a tile, in its dtype."""

    def header(self) -> bytes:
        """The mapping in a stream."""


@dataclass(frozen=True)
class Lattice:
    """``(first + stride * number) / denominator``; ``product``: times the reciprocal, in the dtype of the tile."""

    tag: ClassVar[int] = 0
    first: int
    stride: int
    denominator: int
    product: bool = False

    def values(self, plane: Plane, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The values of a tile, in its dtype."""
        exact = plane * self.stride + self.first
        if dtype.kind in "iu":
            return exact.astype(dtype)
        if self.product:
            scaled: NDArray[Any] = exact.astype(dtype) * dtype.type(1 / self.denominator)
            return scaled
        return np.true_divide(exact, self.denominator).astype(dtype)

    def header(self) -> bytes:
        """The mapping in a stream."""
        return (
            wire.signed(self.first)
            + wire.unsigned(self.stride)
            + wire.unsigned(self.denominator << 1 | int(self.product))
        )

    @classmethod
    def read(cls, reader: wire.Reader) -> Lattice:
        """The mapping from a stream."""
        first, stride, last = reader.signed(), reader.unsigned(), reader.unsigned()
        if stride >= 1 << 40 or abs(first) >= 1 << 60 or last < 2:
            raise FormatError(wire.DAMAGED.format("its lattice is impossible"))
        return cls(first, stride, last >> 1, bool(last & 1))

    def near(self, values: NDArray[np.float64]) -> Plane:
        """The numbers next to some values, in whatever range they are."""
        return whole((values * self.denominator - self.first) / self.stride)


@dataclass(frozen=True)
class Steps:
    """``offset + unit * number`` in float64."""

    tag: ClassVar[int] = 1
    offset: float
    unit: float

    def values(self, plane: Plane, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The values of a tile, in its dtype."""
        return _cast(plane.astype(np.float64) * self.unit + self.offset, dtype)

    def header(self) -> bytes:
        """The mapping in a stream."""
        return wire.real(self.offset) + wire.real(self.unit)

    @classmethod
    def read(cls, reader: wire.Reader) -> Steps:
        """The mapping from a stream."""
        return cls(reader.real(), reader.real())

    def near(self, values: NDArray[np.float64]) -> Plane:
        """The numbers next to some values, in whatever range they are."""
        return whole((values - self.offset) / self.unit)


@dataclass(frozen=True)
class Bits:
    """Bit patterns of floats in the order of the values, ``first`` the least, without their ``shift`` lowest bits.

    ``low``: those bits, as the least number of little-endian bytes a value, byte planes under zstd; empty where all
    are 0.
    """

    tag: ClassVar[int] = 2
    first: int
    shift: int
    low: bytes = b""

    def values(self, plane: Plane, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The values of a tile, in its dtype."""
        number = plane + self.first
        pattern = np.where(number < 0, -1 - number, number) << self.shift
        if self.low:
            planes = np.frombuffer(_unpack(self.low, plane.size * _low_bytes(self.shift)), np.uint8)
            for at, byte in enumerate(planes.reshape(-1, plane.size)):
                pattern |= byte.astype(np.int64) << 8 * at
        sign = (number < 0).astype(np.int64) << (8 * dtype.itemsize - 1)
        return (pattern | sign).astype(f"u{dtype.itemsize}", casting="unsafe").view(dtype)

    def header(self) -> bytes:
        """The mapping in a stream."""
        return wire.signed(self.first) + wire.unsigned(self.shift) + wire.section(self.low)

    @classmethod
    def read(cls, reader: wire.Reader) -> Bits:
        """The mapping from a stream."""
        first, shift, low = reader.signed(), reader.unsigned(), reader.section()
        if shift > 52:
            raise FormatError(wire.DAMAGED.format("its floats have impossible parts"))
        return cls(first, shift, low)

    @classmethod
    def of(cls, z: NDArray[Any]) -> tuple[Bits, Plane]:
        """The mapping of the values of a tile, and their numbers."""
        size = 8 * z.dtype.itemsize
        pattern = z.view(f"i{z.dtype.itemsize}").astype(np.int64)
        negative = pattern < 0
        pattern &= (1 << (size - 1)) - 1
        used = int(np.bitwise_or.reduce(pattern))
        shift = min((used & -used).bit_length() - 1 if used else 0, 52)
        low = b""
        number = _signed(pattern >> shift, negative)
        while shift < 52 and int(number.max()) - int(number.min()) > HIGHEST:
            shift += 1
            number = _signed(pattern >> shift, negative)
        rest = pattern & ((1 << shift) - 1)
        if rest.any():
            planes = [(rest >> 8 * at & 255).astype(np.uint8).tobytes() for at in range(_low_bytes(shift))]
            low = zstandard.ZstdCompressor(level=9).compress(b"".join(planes))
        return cls(int(number.min()), shift, low), number - number.min()


@dataclass(frozen=True)
class Table:
    """Ranks in a list of distinct values, given as numbers of another mapping."""

    tag: ClassVar[int] = 4
    ranked: NDArray[np.int64]
    numbers: Lattice | Bits

    def values(self, plane: Plane, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The values of a tile, in its dtype."""
        return self.numbers.values(self.ranked, dtype)[plane]


@dataclass(frozen=True)
class Rungs:
    """Depths at which steps grow with the uncertainty: ``d = a / b * sinh(n log g)`` for numbers above 0, heights in
    equal steps below. ``growth``: g; ``rise``: metres of a step on land."""

    MOST: ClassVar[int] = 1 << 22
    """Numbers below the water line, at most."""
    tag: ClassVar[int] = 3
    first: int
    ratio: float
    growth: float
    rise: float

    def values(self, plane: Plane, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The values of a tile, in its dtype."""
        number = plane + self.first
        top = int(number.max(initial=0))
        powers = _powers(self.growth, 1 << max(top, 1).bit_length())[np.maximum(number, 0)]
        depth = (powers - 1 / powers) * (self.ratio / 2)
        return _cast(np.where(number > 0, -depth, -number * self.rise), dtype)

    def header(self) -> bytes:
        """The mapping in a stream."""
        return wire.signed(self.first) + wire.real(self.ratio) + wire.real(self.growth) + wire.real(self.rise)

    @classmethod
    def read(cls, reader: wire.Reader) -> Rungs:
        """The mapping from a stream."""
        return cls(reader.signed(), reader.real(), reader.real(), reader.real())

    def fits(self, top: int) -> bool:
        """Whether the rungs up to number ``top`` are few enough to be listed."""
        return self.first + top < self.MOST


def _signed(magnitude: Plane, negative: NDArray[np.bool_]) -> Plane:
    return np.where(negative, -1 - magnitude, magnitude)


def _low_bytes(shift: int) -> int:
    return -(-shift // 8)


def _unpack(data: bytes, size: int) -> bytes:
    """zstd content of exactly ``size`` bytes."""
    try:
        found = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(wire.DAMAGED.format("the low bits of its floats cannot be read")) from error
    if len(found) != size:
        raise FormatError(wire.DAMAGED.format("the low bits of its floats are incomplete"))
    return found


@lru_cache(maxsize=4)
def _powers(base: float, number: int) -> NDArray[np.float64]:
    """``base ** n`` for n from 0 to ``number``, by repeated multiplication: the same doubles on every machine."""
    steps = np.full(number + 1, base)
    steps[0] = 1
    with np.errstate(over="ignore", invalid="ignore"):
        return np.multiply.accumulate(steps)


def _cast(z: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        return z.astype(dtype)


def whole(numbers: NDArray[np.float64]) -> Plane:
    """Real numbers rounded to those a plane may have."""
    return np.rint(np.clip(numbers, 0, HIGHEST)).astype(np.int64)
