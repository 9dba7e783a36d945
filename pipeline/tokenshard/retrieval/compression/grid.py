"""What the methods that round a vector to a grid of scaled points have in common.

A vector is ``centre + map @ (levels[points] * factor)``, where each segment of coordinates has a factor of its own. The
methods differ in the map, the levels, the choice of points and what a factor is; packing and scoring are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.retrieval.compression import kernels
from tokenshard.retrieval.compression.base import Encoded, Scorer, Streams
from tokenshard.retrieval.exact import Multivectors, Vectors

_CHUNK = 1 << 15
"""Vectors whose bits are spread out at a time."""


def pack_rows(points: NDArray[Any], bits: int, offsets: NDArray[np.int64]) -> Streams:
    """``points`` [N, e], unsigned, of ``bits`` bits each, lowest first; each vector starts at a byte."""
    width = -(-points.shape[1] * bits // 8)
    rows = np.empty((len(points), width), np.uint8)
    for first in range(0, len(points), _CHUNK):
        part = points[first : first + _CHUNK].astype(np.uint16)[:, :, None] >> np.arange(bits, dtype=np.uint16) & 1
        rows[first : first + _CHUNK] = np.packbits(part.reshape(len(part), -1).astype(np.uint8), 1, bitorder="little")
    return Streams.rows(rows, offsets)


def unpack_rows(
    stream: Streams, name: str, count: int, bits: int, offsets: NDArray[np.int64]
) -> NDArray[np.uint8 | np.uint16]:
    """Inverse of :func:`pack_rows`: [N, count]. Raises FormatError where the bytes do not fit the vectors."""
    rows = stream.as_rows(name, np.uint8, (-(-count * bits // 8),), offsets)
    kind: Any = np.uint8 if bits <= 8 else np.uint16
    points = np.empty((len(rows), count), kind)
    for first in range(0, len(rows), _CHUNK):
        spread = np.unpackbits(rows[first : first + _CHUNK], axis=1, count=count * bits, bitorder="little")
        digits = spread.reshape(len(spread), count, bits).astype(kind) << np.arange(bits, dtype=kind)
        points[first : first + _CHUNK] = digits.sum(2, dtype=kind)
    return points


def halves(values: NDArray[Any], offsets: NDArray[np.int64]) -> Streams:
    """``values`` [N, k] in half precision."""
    return Streams.rows(np.ascontiguousarray(values, "<f2"), offsets)


def from_halves(encoded: Encoded, name: str, count: int) -> Vectors:
    """float32 [N, count]. Raises FormatError on damage."""
    values = encoded.streams[name].as_rows(name, "<f2", (count,), encoded.offsets).astype(np.float32)
    if not np.isfinite(values).all():
        raise FormatError(f"the stream {name} holds values that are not finite; the shard is damaged")
    return values


def random_rotation(dimensions: int, seed: int) -> Vectors:
    """float32 [d, d], orthonormal."""
    matrix = np.random.default_rng(seed).standard_normal((dimensions, dimensions))
    rotation, upper = np.linalg.qr(matrix)
    return (rotation * np.sign(np.diag(upper))).astype(np.float32)


@dataclass(frozen=True)
class GridScorer(Scorer):
    """Points on a grid, in memory a byte (or two) a coordinate."""

    offsets: NDArray[np.int64]
    points: NDArray[Any]
    """unsigned [N, e]"""
    levels: Vectors
    """[values a point can have]"""
    factors: Vectors
    """[N, segments]"""
    segments: NDArray[np.int64]
    """[e]: segment of each coordinate"""
    axes: Vectors
    """[e + k, d]: what a unit along each coordinate, and each extra one, adds to a vector"""
    centres: Vectors
    """[C, d]"""
    extra: Vectors
    """[N, k]: further coordinates as they are"""
    ids: NDArray[np.int32]
    """[N]: centre of each vector"""
    weights: Vectors
    """[N]: of the centre"""

    @classmethod
    def of(
        cls, offsets: NDArray[np.int64], points: NDArray[Any], levels: Vectors, factors: Vectors, axes: Vectors,
        centre: Vectors, segments: NDArray[np.int64] | None = None, extra: Vectors | None = None,
    ) -> GridScorer:  # fmt: skip
        """Around one centre [d]."""
        count, width = points.shape
        return cls(
            offsets,
            np.ascontiguousarray(points),
            np.asarray(levels, np.float32),
            np.ascontiguousarray(factors, np.float32),
            np.zeros(width, np.int64) if segments is None else segments,
            np.ascontiguousarray(axes, np.float32),
            np.asarray(centre, np.float32)[None],
            np.zeros((count, 0), np.float32) if extra is None else extra,
            np.zeros(count, np.int32),
            np.ones(count, np.float32),
        )

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.points, self.factors, self.extra, self.ids, self.weights))

    def vectors(self) -> Multivectors:
        """What the codes stand for."""
        out = np.empty((len(self.points), self.axes.shape[1]), np.float32)
        for first in range(0, len(out), _CHUNK):
            mine = slice(first, first + _CHUNK)
            inner = self.levels[self.points[mine]] * self.factors[mine][:, self.segments]
            inner = np.concatenate([inner, self.extra[mine]], 1)
            out[mine] = kernels.project(inner, self.axes) + self.centres[self.ids[mine]] * self.weights[mine, None]
        return Multivectors(out, self.offsets)

    def prepare(self, query: Vectors) -> kernels.Tables:
        rows = np.concatenate([self.axes, self.centres])
        return [(rows @ columns, count, lanes) for columns, count, lanes in kernels.query_tables(query)]

    def score(self, prepared: kernels.Tables, pages: NDArray[np.int64], out: Vectors) -> None:
        codes = self.points, self.levels, self.factors, self.segments, self.extra, self.ids, self.weights
        kernels.add_parts(kernels.grid_maxsim, prepared, codes, self.offsets, pages, out)


@dataclass(frozen=True)
class SignScorer(Scorer):
    """Signs, a bit a coordinate, with one factor a vector around one centre."""

    offsets: NDArray[np.int64]
    bits: NDArray[np.uint8]
    """[N, e / 8]"""
    factors: Vectors
    """[N]"""
    axes: Vectors
    """[e, d]"""
    centre: Vectors
    """[d]"""

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes + self.factors.nbytes

    def prepare(self, query: Vectors) -> kernels.Tables:
        signs = 2.0 * (np.arange(16)[:, None] >> np.arange(4) & 1).astype(np.float32) - 1
        padded = np.zeros((8 * self.bits.shape[1], self.axes.shape[1]), np.float32)
        padded[: len(self.axes)] = self.axes
        tables = []
        for columns, count, lanes in kernels.query_tables(query):
            fours = (padded @ columns).reshape(-1, 4, columns.shape[1])
            sums = np.matmul(signs, fours).reshape(-1, columns.shape[1])
            tables.append((np.concatenate([sums, self.centre[None] @ columns]).astype(np.float32), count, lanes))
        return tables

    def score(self, prepared: kernels.Tables, pages: NDArray[np.int64], out: Vectors) -> None:
        kernels.add_parts(kernels.sign_maxsim, prepared, (self.bits, self.factors), self.offsets, pages, out)
