"""Points on a grid after a random rotation: `rabitq` and `caq`, bits and one factor a vector.

A rotation makes all coordinates alike, so that no codebook is needed and none can be outdated. The factor makes the
inner product of a vector with its own code exact, which leaves estimates without bias (Gao and Long, RaBitQ,
arXiv:2405.12497). FAISS and the authors keep a second factor, for the exact inner product with the centre; vectors of
pages have next to no mean, and two bytes are two bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import kernels, rounding_kernels
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, Scorer, numbers
from tokenshard.retrieval.compression.checks import checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.grid import (
    GridScorer,
    SignScorer,
    from_halves,
    halves,
    pack_rows,
    random_rotation,
    unpack_rows,
)
from tokenshard.retrieval.exact import Multivectors, Vectors

_ADJUSTING_ROUNDS = 6
_SCALES = np.linspace(0.25, 1.0, 16)


class _Rotated(Compressor):
    """``centre`` float32 [d], and the rotation that its ``seed`` makes."""

    streams: ClassVar[tuple[str, ...]] = ("points", "factor")
    most_bits: ClassVar[int]

    def __init__(self, bits: int, rotation: NDArray[np.float16], centre: NDArray[np.float32]) -> None:
        self.bits, self.centre, self._rotation = bits, centre, rotation
        self.dimensions = len(centre)
        self.rotation = rotation.astype(np.float32)
        self._levels = (2 * np.arange(1 << bits) - (1 << bits) + 1).astype(np.float32)

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        options = numbers(cls.name, arguments, {"bits": int}, 1)
        if not 1 <= options["bits"] <= cls.most_bits:
            raise SpecError(f"codec {cls.name} has 1 to {cls.most_bits} bits")
        return options

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        vectors = checked_sample(sample)
        centre = vectors.mean(0, dtype=np.float64).astype(np.float32)
        return cls(options["bits"], random_rotation(len(centre), seed).astype(np.float16), centre)

    @abstractmethod
    def _points(self, rotated: Vectors, points: NDArray[np.uint16], factors: Vectors) -> None:
        """Fill the points [n, d] and factors [n] of rotated vectors [n, d]."""

    def encode(self, pages: Multivectors) -> Encoded:
        vectors = checked_vectors(pages, self.dimensions)
        points = np.empty(vectors.shape, np.uint16)
        factors = np.empty(len(vectors), np.float32)
        self._points(kernels.project(vectors - self.centre, self.rotation), points, factors)
        streams = {
            "points": pack_rows(points, self.bits, pages.offsets),
            "factor": halves(factors[:, None], pages.offsets),
        }
        return Encoded(pages.offsets, streams=streams)

    def decode(self, encoded: Encoded) -> Multivectors:
        return self._grid(encoded).vectors()

    def open(self, encoded: Encoded) -> Scorer:
        if self.bits > 1:
            return self._grid(encoded)
        bits = encoded.streams["points"].as_rows("points", np.uint8, (-(-self.dimensions // 8),), encoded.offsets)
        factors = from_halves(encoded, "factor", 1)[:, 0].copy()
        return SignScorer(encoded.offsets, bits, factors, np.ascontiguousarray(self.rotation.T), self.centre)

    def _grid(self, encoded: Encoded) -> GridScorer:
        points = unpack_rows(encoded.streams["points"], "points", self.dimensions, self.bits, encoded.offsets)
        factors = from_halves(encoded, "factor", 1)
        return GridScorer.of(encoded.offsets, points, self._levels, factors, self.rotation.T, self.centre)

    def config(self) -> Config:
        return {"bits": self.bits}

    def arrays(self) -> Arrays:
        return {"rotation": self._rotation, "centre": self.centre}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        centre = stored(arrays, "centre", np.float32, (None,))
        cls.parse((str(config["bits"]),))
        return cls(config["bits"], stored(arrays, "rotation", np.float16, (len(centre), len(centre))), centre)


class RaBitQ(_Rotated):
    """``rabitq:B``: 1 to 9 bits a dimension and a factor; with more than one bit the extended method."""

    name: ClassVar[str] = "rabitq"
    most_bits: ClassVar[int] = 9

    def _points(self, rotated: Vectors, points: NDArray[Any], factors: Vectors) -> None:
        rounding_kernels.scaled_codes(rotated, self.bits, _SCALES if self.bits > 1 else _SCALES[-1:], points, factors)


class Caq(_Rotated):
    """``caq:B``: 1 to 8 bits a dimension and a factor, adjusted codes (SAQ, arXiv:2509.12086)."""

    name: ClassVar[str] = "caq"
    most_bits: ClassVar[int] = 8

    def _points(self, rotated: Vectors, points: NDArray[Any], factors: Vectors) -> None:
        rounding_kernels.adjusted_codes(rotated, self.bits, _ADJUSTING_ROUNDS, points, factors)
