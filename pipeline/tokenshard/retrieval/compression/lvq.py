"""Locally adaptive quantization (LVQ, arXiv:2304.04759), and LeanVec (arXiv:2312.16335), which projects first."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import kernels
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, numbers
from tokenshard.retrieval.compression.checks import checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.grid import GridScorer, from_halves, halves, pack_rows, unpack_rows
from tokenshard.retrieval.exact import Multivectors, Vectors


class Lvq(Compressor):
    """``lvq:B``: the mean taken off, each component one of 2^B levels between the vector's smallest and largest."""

    name: ClassVar[str] = "lvq"
    streams: ClassVar[tuple[str, ...]] = ("points", "bounds")

    def __init__(self, bits: int, axes: NDArray[np.float16] | None, centre: NDArray[np.float32]) -> None:
        self.bits, self.centre, self._stored = bits, centre, axes
        self.dimensions = len(centre)
        self.axes = np.eye(len(centre), dtype=np.float32) if axes is None else axes.astype(np.float32)

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        return _checked(cls.name, numbers(cls.name, arguments, {"bits": int}, 1))

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        return cls(options["bits"], None, checked_sample(sample).mean(0, dtype=np.float64).astype(np.float32))

    def encode(self, pages: Multivectors) -> Encoded:
        away = checked_vectors(pages, self.dimensions) - self.centre
        if self._stored is not None:
            away = kernels.project(away, self.axes)
        bounds = np.stack([away.min(1), away.max(1)], 1).astype("<f2").astype(np.float32)
        steps = (bounds[:, 1:] - bounds[:, :1]) / ((1 << self.bits) - 1)
        places = np.divide(away - bounds[:, :1], steps, out=np.zeros_like(away), where=steps > 0)
        points = np.clip(np.rint(places), 0, (1 << self.bits) - 1).astype(np.uint8)
        streams = {"points": pack_rows(points, self.bits, pages.offsets), "bounds": halves(bounds, pages.offsets)}
        return Encoded(pages.offsets, streams=streams)

    def decode(self, encoded: Encoded) -> Multivectors:
        return self.open(encoded).vectors()

    def open(self, encoded: Encoded) -> GridScorer:
        points = unpack_rows(encoded.streams["points"], "points", self.axes.shape[1], self.bits, encoded.offsets)
        bounds = from_halves(encoded, "bounds", 2)
        levels = np.arange(1 << self.bits, dtype=np.float32)
        steps: Vectors = (bounds[:, 1:] - bounds[:, :1]) / np.float32((1 << self.bits) - 1)
        # What the smallest value adds to every component is one more coordinate: along the sum of all axes.
        axes = np.concatenate([self.axes.T, self.axes.sum(1)[None]])
        smallest = np.ascontiguousarray(bounds[:, :1])
        return GridScorer.of(encoded.offsets, points, levels, steps, axes, self.centre, extra=smallest)

    def config(self) -> Config:
        return {"bits": self.bits}

    def arrays(self) -> Arrays:
        return {"centre": self.centre} | ({} if self._stored is None else {"axes": self._stored})

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        bits = _checked(cls.name, {"bits": int(config["bits"])})["bits"]
        centre = stored(arrays, "centre", np.float32, (None,))
        axes = stored(arrays, "axes", np.float16, (len(centre), None)) if "axes" in arrays else None
        return cls(bits, axes, centre)


class LeanVec(Lvq):
    """``leanvec:D,B``: the first D principal axes, then as ``lvq:B`` (the variant for queries like the data)."""

    name: ClassVar[str] = "leanvec"
    learned: ClassVar[bool] = True

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        return _checked(cls.name, numbers(cls.name, arguments, {"dimensions": int, "bits": int}, 2))

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        vectors = checked_sample(sample)
        if not 1 <= options["dimensions"] <= vectors.shape[1]:
            raise SpecError(f"codec leanvec keeps 1 to {vectors.shape[1]} dimensions of these vectors")
        centre = vectors.mean(0, dtype=np.float64).astype(np.float32)
        away = (vectors - centre).astype(np.float64)
        axes = np.linalg.eigh(away.T @ away)[1][:, ::-1][:, : options["dimensions"]]
        return cls(options["bits"], axes.astype(np.float16), centre)


def _checked(name: str, options: Config) -> Config:
    if not 1 <= options["bits"] <= 8:
        raise SpecError(f"codec {name} has 1 to 8 bits")
    return options
