"""Scalar quantization with two-sided scales: `int8` and `int4`.

The step of a component is a power of the largest component of its vector times one of its dimension's (CrossQuant,
arXiv:2410.07505); dimensions that are far larger than the others are kept in half precision (LLM.int8,
arXiv:2208.07339).
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, numbers
from tokenshard.retrieval.compression.checks import checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.grid import GridScorer, from_halves, halves, pack_rows, unpack_rows
from tokenshard.retrieval.exact import Multivectors

ROW_SHARE = {8: 1.0, 4: 0.85}
"""Exponent of the vector's own largest component; the rest is the dimension's."""
OUTLIER = 6.0
"""A dimension whose largest component is so many times the median of all dimensions is kept as it is."""


class Int(Compressor):
    """``int8`` or ``int4``: signed integers, a scale a vector, and perhaps outlier dimensions."""

    name: ClassVar[str] = "int"
    streams: ClassVar[tuple[str, ...]] = ("points", "scale", "outliers")

    def __init__(self, bits: int, scales: NDArray[np.float32], outliers: NDArray[np.int32]) -> None:
        self.bits, self.scales, self.outliers = bits, scales, outliers
        self.dimensions = len(scales)
        self.top = (1 << bits - 1) - 1
        self._plain = np.setdiff1d(np.arange(len(scales)), outliers)

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        options = numbers(cls.name, arguments, {"bits": int}, 1)
        if options["bits"] not in ROW_SHARE:
            raise SpecError("scalar codecs are int8 and int4")
        return options

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        largest = np.abs(checked_sample(sample)).max(0)
        outliers = np.flatnonzero(largest > OUTLIER * np.median(largest)).astype(np.int32)
        scales = np.maximum(largest, 1e-12) ** (1 - ROW_SHARE[options["bits"]])
        return cls(options["bits"], scales.astype(np.float32), outliers)

    def encode(self, pages: Multivectors) -> Encoded:
        vectors = checked_vectors(pages, self.dimensions)
        plain = vectors[:, self._plain] / self.scales[self._plain]
        # No component exceeds the power of its vector's largest times that of its dimension's, but for the rounding.
        scale = np.maximum(np.abs(vectors[:, self._plain]).max(1, initial=0), 1e-6) ** ROW_SHARE[self.bits]
        scale = scale.astype("<f2").astype(np.float32)[:, None]
        points = np.clip(np.rint(plain / scale * self.top), -self.top, self.top) + self.top
        streams = {
            "points": pack_rows(points.astype(np.uint8), self.bits, pages.offsets),
            "scale": halves(scale, pages.offsets),
            "outliers": halves(vectors[:, self.outliers], pages.offsets),
        }
        return Encoded(pages.offsets, streams=streams)

    def decode(self, encoded: Encoded) -> Multivectors:
        return self.open(encoded).vectors()

    def open(self, encoded: Encoded) -> GridScorer:
        points = unpack_rows(encoded.streams["points"], "points", len(self._plain), self.bits, encoded.offsets)
        levels = np.arange(-self.top, (1 << self.bits) - self.top, dtype=np.float32) / np.float32(self.top)
        units = np.eye(self.dimensions, dtype=np.float32)
        axes = np.concatenate([units[self._plain] * self.scales[self._plain, None], units[self.outliers]])
        extra = from_halves(encoded, "outliers", len(self.outliers))
        factors = from_halves(encoded, "scale", 1)
        centre = np.zeros(self.dimensions, np.float32)
        return GridScorer.of(encoded.offsets, points, levels, factors, axes, centre, extra=extra)

    def config(self) -> Config:
        return {"bits": self.bits}

    def arrays(self) -> Arrays:
        return {"scales": self.scales, "outliers": self.outliers}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        scales = stored(arrays, "scales", np.float32, (None,))
        outliers = stored(arrays, "outliers", np.int32, (None,))
        if len(outliers) and not 0 <= outliers.min() <= outliers.max() < len(scales):
            raise FormatError("codebook: an outlier dimension that does not exist; restore the file")
        return cls(cls.parse((str(config["bits"]),))["bits"], scales, outliers)
