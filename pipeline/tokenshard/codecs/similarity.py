"""A tree over an alphabet in which ids that occur beside the same neighbours share subtrees.

Part of fitting the `context` codec: the first symbol of an id's path then says roughly what it looks like, which is
what its neighbours foretell. Ids and neighbours are embedded by the leading singular vectors of their co-occurrence
counts (correspondence analysis, with small counts damped as in regularized spectral clustering: Chaudhuri, Chung,
Tsiatas 2012), and nodes are bisected across the direction in which their ids vary most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids
from tokenshard.codecs.model import MAX_CHILDREN

Array = NDArray[Any]

_WIDTH = 12
_ENOUGH = 1 << 21
"""Positions that the embedding looks at."""

_DENSE = 1 << 20
"""Counters that are cheaper to fill than numbers are to sort."""

_MAP_BYTES = 3 << 19
"""Class maps in memory: a good third of what a model may take."""


@dataclass(frozen=True)
class Tree:
    """Nodes depth by depth, left to right, and the ids at the leaves."""

    children: tuple[Array, ...]
    """[nodes] a step"""
    leaves: Array
    """[alphabet]: ids in leaf order"""
    places: Array
    """[alphabet, steps, 2]: node and symbol of each id at each step"""
    neighbour_groups: tuple[Array, ...]
    """a kind of neighbour: groups of similar ids, int32 [alphabet of the neighbour + 1]"""

    def symbols(self, step: int, ids: Array) -> tuple[Array, Array]:
        """Node and symbol (int32) of each id at a step."""
        return self.places[:, step, 0][ids], self.places[:, step, 1][ids]

    def maps(self, step: int, alphabets: tuple[int, int]) -> tuple[Array, ...]:
        """(class map of each node,), or () where class maps of that step would take too much memory.

        Nodes below the same node of depth 1 share a map; where even these are too many, neighbours among them do.
        """
        room = _MAP_BYTES // (sum(alphabets) + 2)
        if step == 0:
            return (np.zeros(1, np.int64),) if room else ()
        first = len(self.children[1])
        shared = min(first, (room - 1) // (len(self.children) - 1))
        if shared < 1:
            return ()
        ancestors = np.arange(first)
        for children in self.children[1:step]:
            ancestors = np.repeat(ancestors, children)
        return (ancestors * shared // first,)

    def groups_of(self, number: int, own: bool) -> Array:
        """Groups of the ids of one kind of neighbour: for ids of the same alphabet, the children of the root."""
        if not own:
            return self.neighbour_groups[number]
        symbols = self.places[:, 0, 1]
        return np.append(symbols, symbols.max() + 1).astype(np.int32)


def similarity_tree(ids: Ids, alphabet: int, neighbours: Sequence[tuple[Array, int]]) -> Tree:
    """The tree for ids [n] with these neighbours: (int32 [n], alphabet) each, the alphabet itself being "none"."""
    own, others = _embed(ids, alphabet, neighbours)
    weights = np.bincount(ids, minlength=alphabet) + 1e-3
    nodes, children = [np.arange(alphabet)], []
    branching = _branching(alphabet)
    for depth, most in enumerate(branching):
        parts = [_even(len(members), most) for members in nodes]
        children.append(np.array([len(sizes) for sizes in parts]))
        if depth + 1 < len(branching):
            split = zip(nodes, parts, strict=True)
            nodes = [part for members, sizes in split for part in _bisect(own, weights, members, sizes)]
    groups = []
    for vectors in others:
        split_up = _bisect(vectors, np.ones(len(vectors)), np.arange(len(vectors)), _even(len(vectors), MAX_CHILDREN))
        group = np.empty(len(vectors), np.int32)
        for number, members in enumerate(split_up):
            group[members] = number
        groups.append(group)
    leaves = np.concatenate(nodes)
    return Tree(tuple(children), leaves, _places(children, leaves), tuple(groups))


def _branching(alphabet: int) -> list[int]:
    """Children at each depth: powers of two, the larger ones at the root, whose tables are learnt fastest."""
    bits = max(1, (alphabet - 1).bit_length())
    depth = -(-bits // (MAX_CHILDREN.bit_length() - 1))
    return [1 << (bits // depth + (at < bits % depth)) for at in range(depth)]


def _even(members: int, parts: int) -> list[int]:
    parts = min(members, parts)
    return [end - begin for begin, end in pairwise(members * i // parts for i in range(parts + 1))]


def _bisect(vectors: Array, weights: Array, members: Array, sizes: list[int]) -> list[Array]:
    """Members in parts of the given sizes, similar ones together, each in rising order."""
    if len(sizes) == 1:
        return [np.sort(members)]
    from tokenshard.codecs import fit_kernels

    half = len(sizes) // 2
    cut = sum(sizes[:half])
    ordered = members[np.lexsort((members, fit_kernels.principal_projection(vectors, weights, members)))]
    left = _bisect(vectors, weights, ordered[:cut], sizes[:half])
    return left + _bisect(vectors, weights, ordered[cut:], sizes[half:])


def _embed(ids: Ids, alphabet: int, neighbours: Sequence[tuple[Array, int]]) -> tuple[Array, list[Array]]:
    """Vectors of the ids [alphabet, d] and of each kind of neighbour [its alphabet + 1, d]."""
    from tokenshard.codecs import fit_kernels

    thin = slice(None, None, -(-max(len(ids), 1) // _ENOUGH))
    bounds = np.cumsum([0, *(size + 1 for _, size in neighbours)])
    columns = int(bounds[-1])
    cells = [
        ids[thin].astype(np.int64) * columns + side[thin] + at
        for (side, _), at in zip(neighbours, bounds, strict=False)
    ]
    cell, count = count_cells(np.concatenate(cells), alphabet * columns)
    row, column = np.divmod(cell, columns)
    scales = []
    for index, size in ((row, alphabet), (column, columns)):
        mass = np.bincount(index, count, size)
        scales.append(1 / np.sqrt(mass + mass.mean() + 1e-9))
    start = np.random.Generator(np.random.Philox(0)).random((alphabet, _WIDTH + 1)) - 0.5
    start[:, 0] = 1 / scales[0]  # near the first singular vector, which only tells frequent from rare ids
    other = np.zeros((columns, _WIDTH + 1))
    fit_kernels.embed(row, column, count.astype(np.float64), *scales, start, other)
    own, beside = start[:, 1:] * scales[0][:, None], other[:, 1:] * scales[1][:, None]
    return own, [beside[begin:end] for begin, end in pairwise(bounds)]


def count_cells(cells: Array, size: int) -> tuple[Array, Array]:
    """The distinct numbers below ``size`` among int64 ``cells``, rising, and how often each occurs."""
    if size > _DENSE + 4 * len(cells):
        return np.unique(cells, return_counts=True)
    counts = np.bincount(cells, minlength=size)
    distinct = np.flatnonzero(counts)
    return distinct, counts[distinct]


def _places(children: list[Array], leaves: Array) -> Array:
    places = np.empty((len(leaves), len(children), 2), np.int32)
    below = np.arange(len(leaves))
    for step in range(len(children) - 1, -1, -1):
        ends = np.cumsum(children[step])
        nodes = np.searchsorted(ends, below, "right")
        places[leaves, step, 0], places[leaves, step, 1] = nodes, below - (ends - children[step])[nodes]
        below = nodes
    return places
