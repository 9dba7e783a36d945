"""Pyramid vector quantization (Fischer 1986; PVQ, arXiv:2410.16926): integer points whose sizes add up to K."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import kernels, rounding_kernels
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, numbers
from tokenshard.retrieval.compression.checks import checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.grid import GridScorer, from_halves, halves, random_rotation
from tokenshard.retrieval.compression.residual_tables import ResidualTables
from tokenshard.retrieval.exact import Multivectors, Vectors

_LARGEST = 127


class Pvq(Compressor):
    """``pvq:K``: a random rotation, the point of the pyramid nearest in direction, and a factor; no codebook.

    The integers are entropy-coded, which costs about what numbering the points would.
    """

    name: ClassVar[str] = "pvq"
    streams: ClassVar[tuple[str, ...]] = ("points", "factor")

    def __init__(
        self, total: int, rotation: NDArray[np.float16], centre: NDArray[np.float32], tables: ResidualTables
    ) -> None:
        self.total, self.centre, self.tables, self._stored = total, centre, tables, rotation
        self.rotation: Vectors = rotation.astype(np.float32)
        self.dimensions = len(centre)

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        options = numbers(cls.name, arguments, {"total": int}, 1)
        if not 1 <= options["total"] <= _LARGEST:
            raise SpecError(f"codec pvq has points of 1 to {_LARGEST}")
        return options

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        vectors = checked_sample(sample)
        centre = vectors.mean(0, dtype=np.float64).astype(np.float32)
        rotation = random_rotation(len(centre), seed).astype(np.float16)
        points = _points(vectors - centre, rotation.astype(np.float32), options["total"])[1]
        tables = ResidualTables.fit(points, np.zeros(len(points), np.uint8), 1)
        return cls(options["total"], rotation, centre, tables)

    def encode(self, pages: Multivectors) -> Encoded:
        rotated, points = _points(checked_vectors(pages, self.dimensions) - self.centre, self.rotation, self.total)
        own = np.einsum("nd,nd->n", rotated, rotated)
        dots = np.einsum("nd,nd->n", rotated, points.astype(np.float32))
        factors = np.divide(own, dots, out=np.zeros_like(own), where=dots > 0)
        stream = self.tables.encode(points, np.zeros(len(points), np.uint8), pages.offsets)
        return Encoded(pages.offsets, streams={"points": stream, "factor": halves(factors[:, None], pages.offsets)})

    def decode(self, encoded: Encoded) -> Multivectors:
        return self.open(encoded).vectors()

    def open(self, encoded: Encoded) -> GridScorer:
        count = int(encoded.offsets[-1])
        starts, dims, values = self.tables.decode(encoded.streams["points"], np.zeros(count, np.uint8), encoded.offsets)
        points = np.full((count, self.dimensions), _LARGEST, np.uint8)
        points[np.repeat(np.arange(count), np.diff(starts)), dims] += values.astype(np.uint8)
        levels = np.arange(-_LARGEST, 256 - _LARGEST, dtype=np.float32)
        factors = from_halves(encoded, "factor", 1)
        return GridScorer.of(encoded.offsets, points, levels, factors, self.rotation.T, self.centre)

    def config(self) -> Config:
        return {"total": self.total}

    def arrays(self) -> Arrays:
        return {"rotation": self._stored, "centre": self.centre, **self.tables.arrays()}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        centre = stored(arrays, "centre", np.float32, (None,))
        rotation = stored(arrays, "rotation", np.float16, (len(centre), len(centre)))
        total = cls.parse((str(config["total"]),))["total"]
        return cls(total, rotation, centre, ResidualTables.from_arrays(arrays, len(centre)))


def _points(away: Vectors, rotation: Vectors, total: int) -> tuple[Vectors, NDArray[np.int16]]:
    rotated = kernels.project(away, rotation)
    points = np.empty(rotated.shape, np.int16)
    rounding_kernels.pyramid_points(rotated, total, points)
    return rotated, points
