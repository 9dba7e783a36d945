"""Compiled loops that all methods share: MaxSim as weighted sums of table rows, projections, and the nearest centroid.

A query becomes a table [rows, lanes]: one row a codeword, dimension or group of bits, one column a query vector. The
similarity of all query vectors to a compressed vector is then a weighted sum of a few rows, and whole vectors of the
processor do the work. ``lanes`` is a tuple of as many entries as there are groups of 16 columns, so that each number of
groups is compiled by itself and all sums stay in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from tokenshard.compiled import kernel as compiled
from tokenshard.retrieval.exact import Vectors

_place: Callable[..., Any] = cgutils.gep_inbounds
_variable: Callable[..., Any] = cgutils.alloca_once_value
_declared: Callable[..., Any] = cgutils.get_or_insert_function
_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_intrinsic: _Compiled = intrinsic
kernel: _Compiled = compiled(error_model="numpy")

LANE = 16
"""Query vectors of a group."""
MOST_LANES = 4
"""Groups that are scored together, at most."""


@_intrinsic
def fold(typingctx: Any, table: Any, rows: Any, weights: Any, count: Any, best: Any, lanes: Any) -> Any:
    """``best[:] = max(best, sum of weights[k] * table[rows[k]] over k below count)``.

    ``table`` float32 [rows, 16 * lanes], ``rows`` int32, ``weights`` and ``best`` float32. Nothing is checked.
    """
    signature = types.void(table, rows, weights, types.int64, best, lanes)
    groups = len(lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 1, 2, 4)]
        i64, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANE)
        multiply_add = _declared(builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANE}f32")
        sums = [_variable(builder, ir.Constant(vector, None)) for _ in range(groups)]
        with cgutils.for_range(builder, args[3]) as loop:
            row = builder.sext(builder.load(_place(builder, pointers[1], loop.index)), i64)
            first = builder.mul(row, ir.Constant(i64, LANE * groups))
            weight = builder.load(_place(builder, pointers[2], loop.index))
            spread = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANE), None)
            spread = builder.shuffle_vector(spread, ir.Constant(vector, ir.Undefined), zeros)
            for group, held in enumerate(sums):
                place = _place(builder, pointers[0], builder.add(first, ir.Constant(i64, LANE * group)))
                entries = builder.load(builder.bitcast(place, vector.as_pointer()), align=4)
                builder.store(builder.call(multiply_add, [entries, spread, builder.load(held)]), held)
        for group, held in enumerate(sums):
            place = _place(builder, pointers[3], ir.Constant(i64, LANE * group))
            place = builder.bitcast(place, vector.as_pointer())
            old, new = builder.load(place, align=4), builder.load(held)
            builder.store(builder.select(builder.fcmp_ordered(">", new, old), new, old), place, align=4)
        return context.get_dummy_value()

    return signature, codegen


@_intrinsic
def fold_entries(
    typing: Any, table: Any, row: Any, base: Any, dims: Any, values: Any, first: Any, last: Any, best: Any, lanes: Any
) -> Any:
    """As :func:`fold` of ``table[row]`` and, for each entry k from ``first`` to ``last``, ``values[k]`` times
    ``table[base + dims[k]]``; ``dims`` and ``values`` of any integer type. Nothing is checked."""
    i64 = types.int64
    signature = types.void(table, i64, i64, dims, values, i64, i64, best, lanes)
    groups = len(lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        held = {i: context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 4, 7)}
        word, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANE)
        multiply_add = _declared(builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANE}f32")

        def part(number: Any, group: int) -> Any:
            place = builder.add(builder.mul(number, ir.Constant(word, LANE * groups)), ir.Constant(word, LANE * group))
            found = builder.bitcast(_place(builder, held[0], place), vector.as_pointer())
            return builder.load(found, align=4)

        sums = [_variable(builder, part(args[1], group)) for group in range(groups)]
        with cgutils.for_range_slice(builder, args[5], args[6], ir.Constant(word, 1)) as (entry, _):
            dim = builder.load(_place(builder, held[3], entry))
            extended = builder.sext if signature.args[3].dtype.signed else builder.zext
            number = builder.add(args[2], extended(dim, word))
            weight = builder.sitofp(builder.load(_place(builder, held[4], entry)), ir.FloatType())
            spread = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANE), None)
            spread = builder.shuffle_vector(spread, ir.Constant(vector, ir.Undefined), zeros)
            for group, total in enumerate(sums):
                builder.store(builder.call(multiply_add, [part(number, group), spread, builder.load(total)]), total)
        for group, total in enumerate(sums):
            place = builder.bitcast(_place(builder, held[7], ir.Constant(word, LANE * group)), vector.as_pointer())
            old, new = builder.load(place, align=4), builder.load(total)
            builder.store(builder.select(builder.fcmp_ordered(">", new, old), new, old), place, align=4)
        return context.get_dummy_value()

    return signature, codegen


@_intrinsic
def popcount(typingctx: Any, word: Any) -> Any:
    """Bits of a uint64 that are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@kernel
def sparse_maxsim(table: Any, codes: Any, offsets: Any, pages: Any, count: Any, lanes: Any, out: Any) -> None:
    """Vectors that are a row of the table each, plus ``values`` times the rows ``base + dims`` of some entries.

    ``codes``: ids [N], starts [N + 1] of the entries, dims, values, and base.
    """
    ids, starts, dims, values, base = codes
    best = np.empty(table.shape[1], np.float32)
    for place in range(pages.shape[0]):
        best[:] = -np.inf
        for vector in range(offsets[pages[place]], offsets[pages[place] + 1]):
            fold_entries(table, ids[vector], base, dims, values, starts[vector], starts[vector + 1], best, lanes)
        out[place] = best[:count].sum()


@kernel
def lookup_maxsim(table: Any, codes: Any, offsets: Any, pages: Any, count: Any, lanes: Any, out: Any) -> None:
    """Vectors that are a sum of one row a level: row ``firsts[level] + ids[vector, level]``; ``codes``: ids, firsts."""
    ids, firsts = codes
    levels = ids.shape[1]
    rows, weights = np.empty(levels, np.int32), np.ones(levels, np.float32)
    best = np.empty(table.shape[1], np.float32)
    for place in range(pages.shape[0]):
        best[:] = -np.inf
        for vector in range(offsets[pages[place]], offsets[pages[place] + 1]):
            for level in range(levels):
                rows[level] = firsts[level] + ids[vector, level]
            fold(table, rows, weights, levels, best, lanes)
        out[place] = best[:count].sum()


@kernel
def grid_maxsim(table: Any, codes: Any, offsets: Any, pages: Any, count: Any, lanes: Any, out: Any) -> None:
    """Vectors on a grid: coordinate j has the weight ``levels[points[j]] * factors[segments[j]]``.

    ``codes``: points [N, e], levels, factors [N, segments], segments [e], extra [N, k], centres [N] and their weights
    [N]. Rows of the table: e coordinates, k extra ones, then the centres.
    """
    points, levels, factors, segments, extra, centres, centre_weights = codes
    width, more = points.shape[1], extra.shape[1]
    rows, weights = np.arange(width + more + 1).astype(np.int32), np.empty(width + more + 1, np.float32)
    best = np.empty(table.shape[1], np.float32)
    for place in range(pages.shape[0]):
        best[:] = -np.inf
        for vector in range(offsets[pages[place]], offsets[pages[place] + 1]):
            for j in range(width):
                weights[j] = levels[points[vector, j]] * factors[vector, segments[j]]
            for j in range(more):
                weights[width + j] = extra[vector, j]
            rows[width + more] = width + more + centres[vector]
            weights[width + more] = centre_weights[vector]
            fold(table, rows, weights, width + more + 1, best, lanes)
        out[place] = best[:count].sum()


@kernel
def sign_maxsim(table: Any, codes: Any, offsets: Any, pages: Any, count: Any, lanes: Any, out: Any) -> None:
    """Vectors of signs, a bit each: ``bits`` uint8 [N, bytes], times ``factors`` [N], and one centre.

    Rows of the table: 16 for each four bits, the lower four of a byte first, then the centre.
    """
    bits, factors = codes
    used = 2 * bits.shape[1]
    rows, weights = np.empty(used + 1, np.int32), np.empty(used + 1, np.float32)
    best = np.empty(table.shape[1], np.float32)
    rows[used], weights[used] = 16 * used, 1
    for place in range(pages.shape[0]):
        best[:] = -np.inf
        for vector in range(offsets[pages[place]], offsets[pages[place] + 1]):
            weights[:used] = factors[vector]
            for byte in range(bits.shape[1]):
                value = np.int32(bits[vector, byte])
                rows[2 * byte] = 32 * byte + (value & 15)
                rows[2 * byte + 1] = 32 * byte + 16 + (value >> 4)
            fold(table, rows, weights, used + 1, best, lanes)
        out[place] = best[:count].sum()


@kernel
def hamming_maxsim(query: Any, bits: Any, offsets: Any, pages: Any, words: Any, out: Any) -> None:
    """Sum over the query's sign words uint64 [m, w] of the most signs that a vector of the page has in common.

    ``words``: a tuple of w entries, so that the loop over them is none.
    """
    width = len(words)
    for place in range(pages.shape[0]):
        total = 0
        first, last = np.uint64(offsets[pages[place]]), np.uint64(offsets[pages[place] + 1])
        for row in range(np.uint64(query.shape[0])):
            least = 64 * width
            for vector in range(first, last):
                apart = 0
                for word in range(np.uint64(width)):
                    apart += popcount(query[row, word] ^ bits[vector, word])
                least = min(least, apart)
            total += 64 * width - least
        out[place] = total


@kernel
def _project(vectors: Any, matrix: Any, out: Any) -> None:
    """One vector at a time and in order, so that no sum depends on what is beside it."""
    for row in range(vectors.shape[0]):
        out[row, :] = 0
        for i in range(matrix.shape[0]):
            value = vectors[row, i]
            for j in range(matrix.shape[1]):
                out[row, j] += value * matrix[i, j]


@kernel
def _nearest(scores: Any, vectors: Any, centroids: Any, halves: Any, tolerance: Any, out: Any) -> None:
    """The largest of each row of ``scores``; those near it are computed again in double precision."""
    for row in range(scores.shape[0]):
        limit = scores[row].max() - tolerance
        best, found = -np.inf, 0
        rivals = 0
        for k in range(scores.shape[1]):
            if scores[row, k] >= limit:
                rivals += 1
                found = k
        if rivals > 1:
            for k in range(scores.shape[1]):
                if scores[row, k] >= limit:
                    exact = -np.float64(halves[k])
                    for j in range(vectors.shape[1]):
                        exact += np.float64(vectors[row, j]) * np.float64(centroids[k, j])
                    if exact > best:
                        best, found = exact, k
        out[row] = found


def project(vectors: Vectors, matrix: Vectors) -> Vectors:
    """``vectors @ matrix`` [N, e], where no entry depends on the other vectors."""
    out = np.empty((len(vectors), matrix.shape[1]), np.float32)
    _project(np.ascontiguousarray(vectors), np.ascontiguousarray(matrix), out)
    return out


_BLOCK = 1 << 23
"""Inner products held at a time."""


def nearest(vectors: Vectors, centroids: Vectors) -> NDArray[np.int64]:
    """Number [N] of the centroid at the smallest Euclidean distance to each vector; the lowest of equal ones.

    It does not depend on the other vectors, as the last digits of a matrix product may.
    """
    found = np.empty(len(vectors), np.int64)
    halves = np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64) / 2
    size = float(np.sqrt(2 * halves.max(initial=0)))
    step = max(1, _BLOCK // max(1, len(centroids)))
    for first in range(0, len(vectors), step):
        part = vectors[first : first + step]
        tolerance = 1e-5 * size * max(size, float(np.linalg.norm(part, axis=1).max(initial=0)))
        scores = part @ centroids.T - halves.astype(np.float32)
        _nearest(scores, part, centroids, halves, tolerance, found[first : first + step])
    return found


Tables = list[tuple[Vectors, int, tuple[int, ...]]]
"""Of parts of a query: the table float32 [rows, 16 * lanes], query vectors in it, lanes."""


def query_tables(query: Vectors) -> Tables:
    """A query float32 [m, d] as columns: (float32 [d, 16 * lanes], query vectors in it, lanes), 64 of them at a time.

    Columns beyond the query vectors are zero.
    """
    parts = []
    for first in range(0, len(query), LANE * MOST_LANES):
        part = query[first : first + LANE * MOST_LANES]
        lanes = -(-len(part) // LANE)
        columns = np.zeros((query.shape[1], LANE * lanes), np.float32)
        columns[:, : len(part)] = part.T
        parts.append((columns, len(part), (0,) * lanes))
    return parts


def add_parts(
    maxsim: Callable[..., None], tables: Tables, codes: Any, offsets: NDArray[np.int64], pages: NDArray[np.int64],
    out: Vectors,
) -> None:  # fmt: skip
    """Write the sum of a compiled loop over the parts of a query to ``out``."""
    out[:] = 0
    part = np.empty_like(out)
    for table, count, lanes in tables:
        maxsim(table, codes, offsets, pages, count, lanes, part)
        out += part
