"""Exact nearest-codeword search on the CPU, in integers. The inner loop of `patch`, both for encoding and for training.

Vectors and codewords are small integers, carried by floating point numbers that are wide enough to hold every partial
sum exactly (`exact_dtype`). Sums of exact integers do not depend on their order, so the ids are those of integer
arithmetic on any machine, for any batch size and any number of threads.

Codewords are grouped into leaves of 32 neighbours (the leaves of a k-d tree). The squared distance to the box around a
leaf is a lower bound for all of its codewords, so most leaves are skipped without changing the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenshard.compiled import kernel as compiled
from tokenshard.errors import FormatError

LANES = 32
"""Codewords of a leaf: a few vector registers wide, so that a leaf costs about as much as finding out to skip it."""
_STEP = 8
"""Vectors are padded with zeros to a multiple of this: the inner loops are unrolled by it."""
_BOX_AXES = 8
"""Axes a box is tested on. PCA puts nearly all of the spread into the first ones."""
_MAX_THREADS = 16
_FAR = 3e38
"""Above any distance, yet a float32."""

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile with numba. Fused multiply-add is allowed: on exact integers it changes nothing but the speed."""
    fastmath = {"contract", "nnan", "ninf", "nsz"}
    return compiled(fastmath=fastmath, error_model="numpy")(function)


class CodewordTree(NamedTuple):
    """Codewords laid out for the search (`r` is the padded vector length; float32 or float64, see `exact_dtype`)."""

    lanes: NDArray[Any]
    """[leaves, 1 + r, LANES]: row 0 is |c|², the others -2c: times (1, y) this gives |c - y|² - |y|²."""
    ids: NDArray[np.int32]
    """[leaves, LANES], ascending within a leaf; the last id is repeated where a leaf is not full."""
    low: NDArray[Any]
    """[axes, leaves]: lower edges of the boxes."""
    high: NDArray[Any]
    """[axes, leaves]: upper edges of the boxes."""


def exact_dtype(largest: float) -> type[np.float32] | type[np.float64]:
    """The narrowest float type that holds every integer up to ``largest`` in magnitude.

    Raises :class:`FormatError` above 2⁵³, which no tokenizer fitted here reaches.
    """
    if largest < 1 << 24:
        return np.float32
    if largest < 1 << 53:
        return np.float64
    raise FormatError(f"tokenizer weights are too large for exact search (sums up to {largest:.3g})")


def padded(length: int) -> int:
    """``length`` rounded up to a multiple of the unrolling step."""
    return -(-length // _STEP) * _STEP


def leaf_order(codewords: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Indices of integer codewords [K, r] in leaves of at most 32 neighbours, each index once.

    Splits at the median of the axis with the largest spread, at a multiple of 32, so that only the last leaf of a
    branch is not full.
    """
    leaves = []
    stack = [np.arange(len(codewords))]
    while stack:
        members = stack.pop()
        if len(members) <= LANES:
            leaves.append(members)
            continue
        axis = int(np.argmax(codewords[members].astype(np.float64).var(axis=0)))
        members = members[np.argsort(codewords[members, axis], kind="stable")]
        middle = -(-len(members) // LANES) // 2 * LANES
        stack += [members[middle:], members[:middle]]
    return leaves


def build_tree(codewords: NDArray[np.int16], reach: float) -> CodewordTree:
    """Lay out codewords [K, r] for searching vectors whose Euclidean norm is at most ``reach``."""
    length = codewords.shape[1]
    wide = codewords.astype(np.int64)
    # Every sum of the search is bounded by (|c| + |y|)² (Cauchy-Schwarz, over any subset of the axes).
    dtype = exact_dtype((float(np.sqrt((wide**2).sum(axis=1).max())) + reach) ** 2)
    leaves = [np.sort(leaf) for leaf in leaf_order(codewords)]
    axes = min(_BOX_AXES, padded(length))
    lanes = np.zeros((len(leaves), 1 + padded(length), LANES), dtype)
    ids = np.empty((len(leaves), LANES), np.int32)
    low = np.zeros((axes, len(leaves)), dtype)
    high = np.zeros((axes, len(leaves)), dtype)
    for n, leaf in enumerate(leaves):
        ids[n] = np.pad(leaf, (0, LANES - len(leaf)), mode="edge")
        members = wide[ids[n]]
        lanes[n, 0] = (members**2).sum(axis=1)
        lanes[n, 1 : 1 + length] = -2 * members.T
        shown = min(axes, length)
        low[:shown, n] = members[:, :shown].min(axis=0)
        high[:shown, n] = members[:, :shown].max(axis=0)
    return CodewordTree(lanes, ids, low, high)


def nearest(vectors: NDArray[np.int16], tree: CodewordTree) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Id of the nearest codeword of each vector [N, r] (the lowest id on ties), and the squared distance to it.

    Runs on all cores: vectors do not depend on each other, so the result is the same for any number of them.
    """
    ids = np.empty(len(vectors), np.int32)
    distances = np.empty(len(vectors), np.int64)
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    edges = np.linspace(0, len(vectors), threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        parts = [slice(start, stop) for start, stop in pairwise(edges)]
        for done in [pool.submit(_nearest_rows, vectors[p], tree, ids[p], distances[p]) for p in parts]:
            done.result()
    return ids, distances


@kernel
def _box_distances(y: NDArray[Any], low: NDArray[Any], high: NDArray[Any], boxes: NDArray[Any]) -> int:
    """Squared distance of y to every box (as far as its tested axes go); returns the leaf with the smallest."""
    zero = y.dtype.type(0)
    boxes[:] = 0
    for part in range(low.shape[0] // 4):
        axis = part * 4
        for leaf in range(boxes.shape[0]):
            total = boxes[leaf]
            for a in range(4):
                below = low[axis + a, leaf] - y[axis + a]
                above = y[axis + a] - high[axis + a, leaf]
                gap = below if below > above else above
                gap = gap if gap > zero else zero
                total += gap * gap
            boxes[leaf] = total
    closest = 0
    for leaf in range(1, boxes.shape[0]):
        if boxes[leaf] < boxes[closest]:
            closest = leaf
    return closest


@kernel
def _scores(lanes: NDArray[Any], y: NDArray[Any], scores: NDArray[Any]) -> Any:
    """|c - y|² - |y|² for the codewords of one leaf; returns the smallest."""
    for m in range(LANES):
        scores[m] = lanes[0, m]
    for part in range(y.shape[0] // _STEP):
        k = part * _STEP
        for m in range(LANES):
            total = scores[m]
            for a in range(_STEP):
                total += lanes[1 + k + a, m] * y[k + a]
            scores[m] = total
    smallest = scores[0]
    for m in range(1, LANES):
        smallest = scores[m] if scores[m] < smallest else smallest
    return smallest


@kernel
def search(y: NDArray[Any], tree: CodewordTree, boxes: NDArray[Any], scores: NDArray[Any]) -> tuple[int, Any]:
    """Nearest codeword of one padded vector y [r]: (id, squared distance). Called from other kernels.

    ``boxes`` [leaves] and ``scores`` [LANES] are working space of the tree's dtype.
    """
    lanes, ids = tree.lanes, tree.ids
    closest = _box_distances(y, tree.low, tree.high, boxes)
    square = y.dtype.type(0)
    for a in range(y.shape[0]):
        square += y[a] * y[a]
    best, best_id = y.dtype.type(_FAR), -1
    leaf, following = closest, 0
    while True:
        if boxes[leaf] <= best + square:
            smallest = _scores(lanes[leaf], y, scores)
            if smallest <= best:
                m = 0
                while scores[m] != smallest:
                    m += 1
                if smallest < best or ids[leaf, m] < best_id:
                    best_id = ids[leaf, m]
                best = smallest
        if following == closest:
            following += 1
        if following >= boxes.shape[0]:
            return best_id, best + square
        leaf = following
        following += 1


@kernel
def _nearest_rows(
    vectors: NDArray[np.int16], tree: CodewordTree, ids: NDArray[np.int32], distances: NDArray[np.int64]
) -> None:
    y = np.zeros(tree.lanes.shape[1] - 1, tree.lanes.dtype)
    boxes = np.empty(tree.lanes.shape[0], tree.lanes.dtype)
    scores = np.empty(LANES, tree.lanes.dtype)
    for n in range(vectors.shape[0]):
        for a in range(vectors.shape[1]):
            y[a] = vectors[n, a]
        ids[n], distances[n] = search(y, tree, boxes, scores)
