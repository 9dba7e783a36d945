"""Clustering of neighbours and of class pairs by what they tell about symbols: parts of fitting the `context` codec.

Clusterings of count vectors that minimize code length (Kullback-Leibler k-means: Dhillon, Mallela, Kumar 2003), seeded
by splitting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.similarity import count_cells

Array = NDArray[Any]

_LEAST_GAIN = 40.0
"""Bits that one more class or table must save on the pilot: about what it costs to store."""

_MOST_BITS = 5.0
"""What knowing a symbol can save."""

_GROUP_WEIGHT = 4.0
"""Occurrences that the mean of an id's group counts for when the id is given a class."""

_PAIR_WEIGHT = 20.0
"""Occurrences that p(s|a) p(s|b) / p(s), what both classes tell apart, counts for when a pair is given a table."""

CLUSTERS = 8
"""Clusters of a map that several nodes share, for each class a node makes of them."""

_REFINEMENTS = 3


@dataclass(frozen=True)
class Symbols:
    """Positions at nodes that share a class map: their nodes (from 0) and symbols, int32."""

    nodes: Array
    symbols: Array
    num_nodes: int
    width: int
    """the most children of a node"""

    def contexts(self, sides: list[tuple[Array, Array, int]], classes: int, shared: bool) -> tuple[Array, ...]:
        """(both class maps, both refinements, counts [nodes, classes, classes, width]) for two neighbours.

        A neighbour: its ids, their groups, its alphabet. Maps give classes where each node of the step has its own;
        where some nodes have ``shared`` ones, all give clusters that each node refines to classes of its own.
        """
        maps, refined, at = [], [], self.nodes.astype(np.int64)
        for neighbours, groups, alphabet in sides:
            limit = CLUSTERS * classes if shared else classes
            found = _classes(neighbours, alphabet + 1, self, groups, limit)
            chosen = found[neighbours]
            maps.append(found)
            refined.append(np.zeros((self.num_nodes, 0), np.uint8))
            if shared:
                refined[-1] = self._refine(chosen, limit, classes)
                chosen = refined[-1][self.nodes, chosen]
            at = at * classes + chosen
        flat = np.bincount(at * self.width + self.symbols, minlength=self.num_nodes * classes**2 * self.width)
        return *maps, *refined, flat.reshape(self.num_nodes, classes, classes, self.width)

    def _refine(self, clusters: Array, num_clusters: int, classes: int) -> Array:
        """The class of each cluster at each node [nodes, clusters]."""
        place = (self.nodes.astype(np.int64) * num_clusters + clusters) * self.width + self.symbols
        flat = np.bincount(place, minlength=self.num_nodes * num_clusters * self.width)
        together = np.zeros(num_clusters, np.int32)
        labels = []
        for counts in flat.reshape(self.num_nodes, num_clusters, self.width):
            mean = (counts.sum(axis=0) + 1e-3) / (counts.sum() + 1e-3 * self.width)
            labels.append(_cluster(_Points.of(counts), self.width, classes, together, mean[None]))
        return np.stack(labels)


class _Points(NamedTuple):
    """Sparse count vectors, as the compiled loops take them."""

    starts: Array
    dims: Array
    values: Array

    @classmethod
    def of(cls, dense: Array) -> _Points:
        """From [points, dims]."""
        point, dim = np.nonzero(dense)
        starts = np.zeros(len(dense) + 1, np.int64)
        np.cumsum(np.bincount(point, minlength=len(dense)), out=starts[1:])
        return cls(starts, np.ascontiguousarray(dim), dense[point, dim].astype(np.float64))


def _cluster(points: _Points, dims: int, limit: int, groups: Array, group_means: Array) -> Array:
    """Cluster of each point (int32 [points]), at most ``limit``; a group's mean decides where a point says little."""
    from tokenshard.codecs import fit_kernels

    if points.values.sum() * _MOST_BITS < _LEAST_GAIN:
        return np.zeros(len(points.starts) - 1, np.int32)
    means = (group_means * _GROUP_WEIGHT).astype(np.float32)
    labels: Array = fit_kernels.divide(*points, dims, limit, _LEAST_GAIN)
    for _ in range(_REFINEMENTS):
        logs = fit_kernels.table_logs(*points, dims, labels, int(labels.max()) + 1)
        fit_kernels.assign(*points, logs, groups, fit_kernels.scores(means, logs), labels)
        labels = np.unique_inverse(labels).inverse_indices.astype(np.int32)
    return labels


def _classes(neighbours: Array, alphabet: int, own: Symbols, groups: Array, limit: int) -> Array:
    """The class of each neighbour id [alphabet], by what it tells about the symbols at some nodes."""
    dims = own.num_nodes * own.width
    cells, counts = count_cells(
        neighbours.astype(np.int64) * dims + own.nodes * own.width + own.symbols, alphabet * dims
    )
    point, dim = np.divmod(cells, dims)
    starts = np.zeros(alphabet + 1, np.int64)
    np.cumsum(np.bincount(point, minlength=alphabet), out=starts[1:])
    num_groups = int(groups.max()) + 1
    grouped = np.bincount(groups[point] * dims + dim, counts, num_groups * dims).reshape(num_groups, -1)
    total = grouped.sum(axis=0)
    means = (grouped + total / max(total.sum(), 1)) / (grouped.sum(axis=1, keepdims=True) + 1)
    return _cluster(_Points(starts, dim, counts.astype(np.float64)), dims, limit, groups, means)


def node_tables(counts: Array, limit: int) -> tuple[Array, Array]:
    """(table of each class pair, weights [tables, children]) of a node with counts [classes, classes, children]."""
    classes, _, children = counts.shape
    total = counts.sum(axis=(0, 1))
    prior = (total + 0.5) / (total.sum() + 0.5 * children)
    labels = np.zeros(classes**2, np.int32)
    if total.sum() * _MOST_BITS >= _LEAST_GAIN:
        labels = _pair_labels(counts, prior, limit)
    cells = labels[:, None] * children + np.arange(children)
    flat = np.bincount(cells.reshape(-1), counts.reshape(-1)).reshape(-1, children)
    return labels.reshape(classes, classes), np.rint((flat + prior) * (1 << 16)).astype(np.int64)


def _pair_labels(counts: Array, prior: Array, limit: int) -> Array:
    """The table of each class pair (int32 [classes ** 2]); pairs the pilot never saw go by what both classes tell."""
    from tokenshard.codecs import fit_kernels

    apart = [(sums + 2 * prior) / (sums.sum(axis=-1, keepdims=True) + 2) for sums in (counts.sum(1), counts.sum(0))]
    expected = apart[0][:, None] * apart[1] / prior
    expected *= _PAIR_WEIGHT / expected.sum(axis=-1, keepdims=True)
    mixed, seen = (counts + expected).reshape(-1, len(prior)), counts.any(axis=-1).reshape(-1)
    points, others = _Points.of(mixed[seen]), _Points.of(mixed[~seen])
    alone, no_means = np.zeros(len(mixed), np.int32), np.zeros((1, len(prior)), np.float32)
    labels = np.zeros(len(mixed), np.int32)
    labels[seen] = _cluster(points, len(prior), limit, alone, no_means)
    logs = fit_kernels.table_logs(*points, len(prior), labels[seen], int(labels.max()) + 1)
    unseen = np.zeros(len(others.starts) - 1, np.int32)
    fit_kernels.assign(*others, logs, alone, fit_kernels.scores(no_means, logs), unseen)
    labels[~seen] = unseen
    return labels
