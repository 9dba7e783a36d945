"""Segmented adjusted quantization (SAQ, arXiv:2509.12086): more bits for the dimensions that matter more."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.retrieval.compression import kernels, rounding_kernels
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, Streams, numbers
from tokenshard.retrieval.compression.checks import checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.grid import (
    GridScorer,
    from_halves,
    halves,
    pack_rows,
    random_rotation,
    unpack_rows,
)
from tokenshard.retrieval.exact import Multivectors

MOST_BITS = 8
_ROUNDS = 6
_FACTOR_BITS = 16


class Saq(Compressor):
    """``saq:B``: B bits a dimension on average. Principal axes are cut into segments of different widths; each is
    rotated at random and coded by adjusted codes of its own number of bits, with a factor of its own."""

    name: ClassVar[str] = "saq"
    learned: ClassVar[bool] = True
    streams: ClassVar[tuple[str, ...]] = ("points", "factor")

    def __init__(self, segments: list[list[int]], axes: NDArray[np.float16], centre: NDArray[np.float32]) -> None:
        self.segments = [(int(width), int(bits)) for width, bits in segments]
        self.centre, self._stored = centre, axes
        self.dimensions = len(centre)
        self.axes = axes.astype(np.float32)

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        options = numbers(cls.name, arguments, {"bits": float}, 1)
        if not 0.1 <= options["bits"] <= MOST_BITS:
            raise SpecError(f"codec saq has 0.1 to {MOST_BITS} bits a dimension")
        return options

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        vectors = checked_sample(sample)
        centre = vectors.mean(0, dtype=np.float64).astype(np.float32)
        away = (vectors - centre).astype(np.float64)
        variances, axes = np.linalg.eigh(away.T @ away / len(away))
        variances, axes = variances[::-1], axes[:, ::-1]
        segments = segmentation(tuple(np.maximum(variances, 0).tolist()), options["bits"])
        kept, first = [], 0
        for number, (width, bits) in enumerate(segments):
            if bits:
                kept.append(axes[:, first : first + width] @ random_rotation(width, seed + number))
            first += width
        return cls([list(part) for part in segments if part[1]], np.hstack(kept).astype(np.float16), centre)

    def encode(self, pages: Multivectors) -> Encoded:
        rotated = kernels.project(checked_vectors(pages, self.dimensions) - self.centre, self.axes)
        packed, factors, first = [], np.empty((len(rotated), len(self.segments)), np.float32), 0
        for number, (width, bits) in enumerate(self.segments):
            points, own = np.empty((len(rotated), width), np.uint16), np.empty(len(rotated), np.float32)
            part = np.ascontiguousarray(rotated[:, first : first + width])
            rounding_kernels.adjusted_codes(part, bits, _ROUNDS, points, own)
            packed.append(pack_rows(points, bits, pages.offsets).data.reshape(len(rotated), -(-width * bits // 8)))
            factors[:, number] = own
            first += width
        rows = np.concatenate(packed, 1)
        streams = {"points": Streams.rows(rows, pages.offsets), "factor": halves(factors, pages.offsets)}
        return Encoded(pages.offsets, streams=streams)

    def decode(self, encoded: Encoded) -> Multivectors:
        return self.open(encoded).vectors()

    def open(self, encoded: Encoded) -> GridScorer:
        offsets = encoded.offsets
        sizes = [-(-width * bits // 8) for width, bits in self.segments]
        rows = encoded.streams["points"].as_rows("points", np.uint8, (sum(sizes),), offsets)
        points = np.empty((len(rows), self.axes.shape[1]), np.uint16)
        first, byte = 0, 0
        for (width, bits), size in zip(self.segments, sizes, strict=True):
            part = Streams.rows(rows[:, byte : byte + size], offsets)
            own = unpack_rows(part, "points", width, bits, offsets).astype(np.uint16)
            points[:, first : first + width] = 2 * own + ((1 << MOST_BITS) - (1 << bits))
            first, byte = first + width, byte + size
        levels = np.arange(1 - (1 << MOST_BITS), 1 << MOST_BITS, dtype=np.float32)  # odd numbers of all widths
        of_segment = np.repeat(np.arange(len(self.segments)), [width for width, _ in self.segments])
        factors = from_halves(encoded, "factor", len(self.segments))
        return GridScorer.of(offsets, points, levels, factors, self.axes.T, self.centre, of_segment)

    def config(self) -> Config:
        return {"segments": [list(part) for part in self.segments]}

    def arrays(self) -> Arrays:
        return {"axes": self._stored, "centre": self.centre}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        segments: Any = config["segments"]
        centre = stored(arrays, "centre", np.float32, (None,))
        axes = stored(arrays, "axes", np.float16, (len(centre), sum(int(width) for width, _ in segments)))
        if not all(1 <= bits <= MOST_BITS and width > 0 for width, bits in segments):
            raise FormatError("codebook: a segment without bits or dimensions; restore the file")
        return cls(segments, axes, centre)


def segmentation(variances: tuple[float, ...], bits: float) -> list[tuple[int, int]]:
    """(dimensions, bits) of segments that cover all dimensions and take ``bits`` each on average, factors included.

    The plan with the smallest sum of variance / 2^bits over the dimensions, by dynamic programming; segments are
    multiples of 16 dimensions (8 where there are few). A segment of 0 bits is left out of the codes.
    """
    count = len(variances)
    unit = 16 if count % 16 == 0 and count >= 64 else 8 if count % 8 == 0 else count
    blocks = count // unit
    sums = np.concatenate([[0.0], np.cumsum(variances)])
    step = max(1, unit // 8)
    budget = (round(bits * count) + 2 * _FACTOR_BITS) // step  # two factors come on top, as for the other methods

    @cache
    def best(block: int, left: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        if block == blocks:
            return 0.0, ()
        found: tuple[float, tuple[tuple[int, int], ...]] = (np.inf, ())
        for end in range(block + 1, blocks + 1):
            width, energy = (end - block) * unit, sums[end * unit] - sums[block * unit]
            for each in range(MOST_BITS + 1):
                price = -(-(width * each + (_FACTOR_BITS if each else 0)) // step)
                if price > left:
                    break
                rest, plan = best(end, left - price)
                if energy / 2**each + rest < found[0]:
                    found = energy / 2**each + rest, ((width, each), *plan)
        return found

    plan = list(best(0, budget)[1])
    if not any(each for _, each in plan):
        raise SpecError(f"codec saq: {bits} bits a dimension are not enough for one segment of {unit} dimensions")
    return plan
