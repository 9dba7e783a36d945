"""Which numbers stand for the values of a tile: the ways that keep a bound, most promising first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.bounded.bound import ORDERS, Bound
from tokenshard.grids.bounded.values import HIGHEST, TABLE, Bits, Lattice, Plane, Rungs, Steps, Table

SLACK = 32
"""Numbers on each side within which a value that is on no lattice may be wrong: 65 to an interval."""
DENOMINATORS = (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 1000, 10_000, 100_000)
_EXACT = float(1 << 52)


@dataclass(frozen=True)
class Numbered:
    """The values of a tile as numbers from 0 on, of which each may be wrong by ``slack`` after decoding."""

    mapping: Lattice | Steps | Bits | Rungs | Table
    plane: Plane
    slack: int


def numberings(z: NDArray[Any], bound: Bound) -> Iterator[list[Numbered]]:
    """Ways to number ``z`` ``[n]`` (n >= 1, no NaN). Of the first list with any that keeps the bound the smallest is
    taken; the last list is lossless."""
    if bound.kind == "abs" and np.isfinite(z).all():
        yield from _within(z, bound.value)
    elif bound.kind == "tvu" and np.isfinite(z).all():
        yield from _within_uncertainty(z, bound)
    yield _exactly(z)


def _exactly(z: NDArray[Any]) -> list[Numbered]:
    """Every value bit for bit."""
    found = lattice(z)
    numbers, plane = found if found else Bits.of(z)
    ways = [Numbered(numbers, plane, 0)]
    if isinstance(numbers, Bits) and numbers.low:
        return ways  # a number is not yet a value
    ranked, ranks = np.unique(plane, return_inverse=True)
    if ranked.size <= min(TABLE, z.size // 4) and ranked.size < 0.8 * (plane.max() + 1):
        ways.append(Numbered(Table(ranked, numbers), ranks.reshape(-1).astype(np.int64), 0))
    return ways


def _within(z: NDArray[Any], most: float) -> Iterator[list[Numbered]]:
    """Every value to within ``most``."""
    found = lattice(z)
    if found:
        numbers, plane = found
        slack = math.floor(most / (numbers.stride / numbers.denominator) * (1 + 1e-9))
        width = (2 * slack + 1) * numbers.stride / numbers.denominator
        if z.dtype.kind in "iu" and numbers.stride > 1 and width < 2 * math.floor(most) + 1:
            numbers, plane, slack = Lattice(numbers.first, 1, 1), plane * numbers.stride, int(most)
            width = math.inf
        if z.dtype.kind in "iu" or width >= 2 * most * (1 - 1e-9):
            ways = [Numbered(numbers, plane, slack)]
            if slack and _repeats(plane, z.size):
                # Rounded before prediction, to multiples of the interval: equal cells stay equal.
                wide = 2 * slack + 1
                first, stride = numbers.first + slack * numbers.stride, numbers.stride * wide
                rounded = Lattice(first, stride, numbers.denominator, numbers.product)
                ways.append(Numbered(rounded, plane // wide, 0))
            yield ways
    low, high = float(z.min()), float(z.max())
    for tighter in range(3):
        # Rounding to the dtype of the grid may cost up to half a unit in the last place.
        share = most - tighter * float(np.spacing(z.dtype.type(max(abs(low), abs(high)))))
        unit = 2 * share / (2 * SLACK + 1)
        if unit > 0 and (high - low) / unit < HIGHEST and max(abs(low), abs(high)) / unit < _EXACT:
            plane = np.rint((z.astype(np.float64) - low) / unit).astype(np.int64)
            ways = [Numbered(Steps(low, unit), plane, SLACK)]
            if _repeats(plane, z.size):
                whole = 2 * share
                ways.append(
                    Numbered(Steps(low, whole), np.rint((z.astype(np.float64) - low) / whole).astype(np.int64), 0)
                )
            yield ways


def _repeats(plane: Plane, size: int) -> bool:
    """Whether many cells repeat the one before: then copies are cheaper than steps from a prediction."""
    return size > 1 and float(np.mean(plane[1:] == plane[:-1])) > 0.3


def _within_uncertainty(z: NDArray[Any], bound: Bound) -> Iterator[list[Numbered]]:
    """Every height to within a share of the uncertainty at its depth."""
    a, b = ORDERS[bound.order]
    if z.dtype.kind in "iu":
        levels = _levels(z, bound)
        exact = lattice(levels)
        ranked, ranks = np.unique(levels, return_inverse=True)
        if exact and ranked.size <= TABLE:
            ranked_numbers = (ranked.astype(np.int64) - exact[0].first) // exact[0].stride
            yield [Numbered(Table(ranked_numbers, exact[0]), ranks.reshape(-1).astype(np.int64), 0)]
        return
    heights = z.astype(np.float64)
    for tighter in range(3):
        share = bound.value * (1 - 1e-9) - tighter * float(np.max(np.spacing(np.abs(z)) / a))
        if share <= 0:
            return
        # An interval [u - f', u + f'] of u = asinh(b d / a) / b is within f of the uncertainty if exp(b f') = 1 + b f.
        growth = _root((1 + b * share) * (1 + b * share), 2 * SLACK + 1)
        rise = 2 * a * share / (2 * SLACK + 1)
        deepest = math.asinh(b * max(-float(heights.min()), 0) / a) / math.log(growth)
        if deepest + 2 < Rungs.MOST and float(heights.max()) / rise < HIGHEST:
            rungs = Rungs(0, a / b, growth, rise)
            depths = -rungs.values(np.arange(int(deepest) + 3), np.dtype(np.float64))
            below = np.searchsorted((depths[1:] + depths[:-1]) / 2, np.maximum(-heights, 0))
            number = np.where(heights < 0, below, np.rint(-heights / rise)).astype(np.int64)
            first = int(number.min())
            yield [Numbered(Rungs(first, a / b, growth, rise), number - first, SLACK)]


def _root(value: float, degree: int) -> float:
    """The root of a number from 1 to 4, by Newton's method from above: the same double on every machine."""
    root = value
    while True:
        power = 1.0
        for _ in range(degree - 1):
            power *= root
        closer = root - (root * power - value) / (degree * power)
        if closer >= root:
            return root
        root = closer


def _levels(z: NDArray[Any], bound: Bound) -> NDArray[Any]:
    """Integer heights moved to the fewest levels within a share of the uncertainty at their depth."""
    a, b = ORDERS[bound.order]

    def allowed(depth: int) -> int:
        return int(bound.value * math.sqrt(a * a + b * depth * (b * depth)))

    heights = z.astype(np.int64)
    half = allowed(0)
    levels = heights // (2 * half + 1) * (2 * half + 1) + half
    deepest, ends, rungs = -int(heights.min()), [], []
    last = 0
    while last < deepest:
        rung = last + 1 + allowed(last + 1)
        end = rung
        while rung + allowed(end) > end:
            end = rung + allowed(end)
        rungs.append(rung)
        ends.append(end)
        last = end
    if rungs:
        places = np.searchsorted(ends, np.maximum(-heights, 0))
        levels = np.where(heights < 0, -np.array(rungs)[np.minimum(places, len(rungs) - 1)], levels)
    return np.clip(levels, heights.min(), heights.max()).astype(z.dtype)


def lattice(z: NDArray[Any]) -> tuple[Lattice, Plane] | None:
    """The lattice of integers or of decimal or binary fractions that all of ``z`` is on, bit for bit, and the
    numbers."""
    if z.dtype.kind in "iu":
        return _shrunk(z.astype(np.int64), 1, False)
    if not np.isfinite(z).all():
        return None
    sample = z[:: max(z.size // 1000, 1)]
    for denominator in DENOMINATORS:
        for values in (sample, z):
            if float(np.abs(values).max()) * denominator >= _EXACT:
                return None
            exact = np.rint(values.astype(np.float64) * denominator).astype(np.int64)
            product = not _same(Lattice(0, 1, denominator).values(exact, z.dtype), values)
            if product and not _same(Lattice(0, 1, denominator, True).values(exact, z.dtype), values):
                break
        else:
            return _shrunk(exact, denominator, product)
    return None


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays of floats are the same bit for bit."""
    return bool((a.view(f"u{a.dtype.itemsize}") == b.view(f"u{b.dtype.itemsize}")).all())


def _shrunk(exact: Plane, denominator: int, product: bool) -> tuple[Lattice, Plane] | None:
    """Numbers from 0 on in steps of the greatest common divisor."""
    first = int(exact.min())
    plane = exact - first
    stride = int(np.gcd.reduce(plane)) or 1
    if int(plane.max()) // stride > HIGHEST or stride >= 1 << 40:
        return None
    return Lattice(first, stride, denominator, product), plane // stride
