"""Product and residual quantization, trained by faiss: `pq`, `opq` and `rq`, a byte a level.

Jégou et al. 2011 (product quantization), Ge et al. 2013 (optimized: a rotation first), Chen et al. 2010 (residual: a
sum of codewords). Search sums one look-up a level, as in FAISS.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.retrieval.compression import kernels
from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, Encoded, numbers
from tokenshard.retrieval.compression.checks import as_ids, checked_ids, checked_sample, checked_vectors, stored
from tokenshard.retrieval.compression.hpc import LookupScorer
from tokenshard.retrieval.compression.kmeans import faiss_library
from tokenshard.retrieval.exact import Multivectors, Vectors

SIZE = 256
"""Codewords of a level."""


class _Lookup(Compressor):
    """Vectors that are a sum of codewords after a rotation: ``codebooks`` float16 [levels, 256, width], ``rotation``
    float16 [d, d] or None. A codebook of a part of the dimensions is that of its place among the levels."""

    def __init__(self, codebooks: NDArray[np.float16], rotation: NDArray[np.float16] | None) -> None:
        self._stored, self._rotation = codebooks, rotation
        self.codebooks: Vectors = codebooks.astype(np.float32)
        levels, _, width = codebooks.shape
        self.dimensions = width * (levels if self.split else 1)
        self.alphabets = (SIZE,) * levels
        self._axes: Vectors | None = None if rotation is None else rotation.astype(np.float32)

    split: ClassVar[bool] = True
    """Whether each level covers a part of the dimensions."""

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        options = numbers(cls.name, arguments, {"levels": int}, 1)
        if not 1 <= options["levels"] <= 256:
            raise SpecError(f"codec {cls.name} has 1 to 256 levels")
        return options

    @cached_property
    def _whole(self) -> tuple[Vectors, ...]:
        """Codebooks [256, d] in the space of the vectors."""
        levels, _, width = self.codebooks.shape
        whole = np.zeros((levels, SIZE, self.dimensions), np.float32)
        for level in range(levels):
            first = level * width if self.split else 0
            whole[level, :, first : first + width] = self.codebooks[level]
        if self._axes is None:
            return tuple(whole)
        rotated = kernels.project(whole.reshape(-1, self.dimensions), np.ascontiguousarray(self._axes.T))
        return tuple(rotated.reshape(whole.shape))

    def decode(self, encoded: Encoded) -> Multivectors:
        ids = checked_ids(encoded, self.alphabets)
        total = np.zeros((ids.shape[1], self.dimensions), np.float32)
        for level, codebook in zip(ids, self._whole, strict=True):
            total += codebook[level]
        return Multivectors(total, encoded.offsets)

    def open(self, encoded: Encoded) -> LookupScorer:
        ids = checked_ids(encoded, self.alphabets).astype(np.uint8)
        return LookupScorer(np.ascontiguousarray(ids.T), encoded.offsets, self._whole)

    def config(self) -> Config:
        return {}

    def arrays(self) -> Arrays:
        return {"codebooks": self._stored} | ({} if self._rotation is None else {"rotation": self._rotation})

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        codebooks = stored(arrays, "codebooks", np.float16, (None, SIZE, None))
        if "rotation" not in arrays:
            return cls(codebooks, None)
        rotation = stored(arrays, "rotation", np.float16, (None, None))
        fitted = cls(codebooks, rotation)
        if rotation.shape != (fitted.dimensions, fitted.dimensions):
            raise FormatError("codebook: rotation and codebooks differ in size; restore the file")
        return fitted


class Pq(_Lookup):
    """``pqM``: M parts of the dimensions, one of 256 codewords each."""

    name: ClassVar[str] = "pq"
    learned: ClassVar[bool] = True

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        return cls(_product_codebooks(checked_sample(sample), options["levels"], seed), None)

    def encode(self, pages: Multivectors) -> Encoded:
        parts = self.parts(checked_vectors(pages, self.dimensions))
        ids = [kernels.nearest(part, codebook) for part, codebook in zip(parts, self.codebooks, strict=True)]
        return Encoded(pages.offsets, as_ids(np.stack(ids), SIZE))

    def parts(self, vectors: Vectors) -> Vectors:
        """As :class:`~tokenshard.retrieval.compression.codewords.Codewords` has it."""
        if self._axes is not None:
            vectors = kernels.project(vectors, self._axes)
        return np.stack(np.split(vectors, len(self.codebooks), axis=1))

    def with_codebooks(self, codebooks: Vectors) -> Self:
        return type(self)(codebooks.astype(np.float16), self._rotation)


class Opq(Pq):
    """``opqM``: product quantization after a rotation that suits it."""

    name: ClassVar[str] = "opq"

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        vectors, levels = checked_sample(sample), options["levels"]
        _check_divides(vectors, levels)
        trainer = faiss_library().OPQMatrix(vectors.shape[1], levels)
        trainer.niter = _OPQ_ROUNDS
        part = np.random.default_rng(seed).permutation(len(vectors))[:_OPQ_POINTS]
        trainer.train(vectors[np.sort(part)])
        rotation = faiss_library().vector_to_array(trainer.A).reshape(vectors.shape[1], -1).T.astype(np.float16)
        rotated = kernels.project(vectors, rotation.astype(np.float32))
        return cls(_product_codebooks(rotated, levels, seed), rotation)


class Rq(_Lookup):
    """``rqM``: a sum of M codewords of the whole vector, found by a beam search of 5."""

    name: ClassVar[str] = "rq"
    learned: ClassVar[bool] = True
    split: ClassVar[bool] = False

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        faiss = faiss_library()
        vectors, levels = checked_sample(sample), options["levels"]
        trainer = faiss.ResidualQuantizer(vectors.shape[1], levels, 8)
        trainer.train_type = faiss.ResidualQuantizer.Train_default
        trainer.max_beam_size = 1
        trainer.cp.seed = seed
        part = np.random.default_rng(seed).permutation(len(vectors))[:_RQ_POINTS]
        trainer.train(np.ascontiguousarray(vectors[np.sort(part)]))
        codebooks = faiss.vector_to_array(trainer.codebooks).reshape(levels, SIZE, -1)
        return cls(codebooks.astype(np.float16), None)

    def encode(self, pages: Multivectors) -> Encoded:
        vectors = checked_vectors(pages, self.dimensions)
        ids = np.empty((len(self.codebooks), len(vectors)), np.int64)
        step = max(1, _BEAM_BLOCK // (_BEAM * SIZE))
        for first in range(0, len(vectors), step):
            ids[:, first : first + step] = self._beam(vectors[first : first + step])
        return Encoded(pages.offsets, as_ids(ids, SIZE))

    def _beam(self, vectors: Vectors) -> NDArray[np.int64]:
        """Ids [levels, N]: after each level the 5 sums of codewords nearest to the vector go on."""
        rows = np.arange(len(vectors))[:, None]
        paths = np.zeros((len(vectors), 1, 0), np.int64)
        left = vectors[:, None, :]
        for codebook in self.codebooks:
            halves = np.einsum("kd,kd->k", codebook, codebook) / 2
            gains = (left @ codebook.T - halves) - np.einsum("nbd,nbd->nb", left, left)[:, :, None] / 2
            flat = gains.reshape(len(vectors), -1)
            best = np.argsort(-flat, 1, kind="stable")[:, :_BEAM] if flat.shape[1] <= SIZE else _largest(flat, _BEAM)
            before, chosen = best // SIZE, best % SIZE
            paths = np.concatenate([paths[rows, before], chosen[:, :, None]], 2)
            left = left[rows, before] - codebook[chosen]
        return np.ascontiguousarray(paths[:, 0].T)


_OPQ_ROUNDS, _OPQ_POINTS, _RQ_POINTS = 20, 1 << 16, 1 << 15
_BEAM, _BEAM_BLOCK = 5, 1 << 22


def _largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places of the ``count`` largest of each row, largest first; the first of equal ones."""
    part = np.sort(np.argpartition(-values, count, 1)[:, :count], 1)
    order = np.argsort(-np.take_along_axis(values, part, 1), 1, kind="stable")
    return np.take_along_axis(part, order, 1).astype(np.int64, copy=False)


def _check_divides(vectors: Vectors, levels: int) -> None:
    if vectors.shape[1] % levels:
        raise SpecError(f"{vectors.shape[1]} dimensions cannot be split into {levels} parts; choose a divisor")


def _product_codebooks(vectors: Vectors, levels: int, seed: int) -> NDArray[np.float16]:
    _check_divides(vectors, levels)
    trainer = faiss_library().ProductQuantizer(vectors.shape[1], levels, 8)
    trainer.cp.seed = seed
    trainer.cp.min_points_per_centroid = 1
    if len(vectors) < SIZE:  # faiss wants a vector a codeword
        vectors = np.ascontiguousarray(vectors[np.arange(SIZE) % len(vectors)])
    trainer.train(vectors)
    codebooks: Vectors = faiss_library().vector_to_array(trainer.centroids).reshape(levels, SIZE, -1)
    return codebooks.astype(np.float16)
