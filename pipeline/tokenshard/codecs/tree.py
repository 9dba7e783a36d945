"""Fitting the `context` codec with one table a node: order-0 coding of any alphabet through a shallow tree.

Ids sorted by falling count are split into runs of like weight, depth by depth, so that a node holds few symbols of
very different probability: that is what 12-bit frequencies represent well. Rare ids share a subtree, which costs their
parent one frequency of 1/4096. Every id of the alphabet stays encodable; ids the pilot never saw share the mass of
those it saw once (Good 1953, Turing's estimate). Only integer arithmetic decides, so that equal counts give equal
models on every machine.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids, id_dtype
from tokenshard.codecs.model import MAX_CHILDREN, MAX_STEPS, TOTAL, ContextModel, Pilot, Step

_SCALE = 1 << 16
"""Weight of one count; ids the pilot never saw weigh less than one."""

_LOSS = 1.001
"""A deeper tree is tried while this one costs more than this many times the entropy."""


def fit_order0(counts: NDArray[np.int64], samples: int) -> ContextModel:
    """The order-0 model of an alphabet of ``len(counts)`` ids that occurred ``counts`` times in ``samples`` samples."""
    order = np.argsort(-counts, kind="stable")
    weights = _weights(counts[order])
    total = int(counts.sum())
    ideal = _bits(counts[order], np.log2(weights.sum() / weights)) if total else 0.0
    trees = []
    for depth in range(_least_depth(len(counts)), MAX_STEPS + 1):
        steps, lengths = _build(weights, depth)
        trees.append((_bits(counts[order], lengths), steps))
        if trees[-1][0] <= _LOSS * ideal:
            break
    bits, steps = min(trees, key=lambda tree: tree[0])
    pilot = Pilot(samples=samples, ids=total, bits_per_id=round(bits / max(total, 1), 4))
    leaves: Ids = order.astype(id_dtype(len(counts)))
    return ContextModel(len(counts), ("left", "up"), steps, leaves, pilot)


def _least_depth(alphabet: int) -> int:
    return next(depth for depth in range(1, MAX_STEPS + 1) if MAX_CHILDREN**depth >= alphabet)


def _weights(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    unseen = int((counts == 0).sum())
    once = int((counts == 1).sum())
    return np.where(counts > 0, counts * _SCALE, max(1, once * _SCALE // max(unseen, 1)))


def _bits(counts: NDArray[np.int64], lengths: NDArray[np.float64]) -> float:
    return float((counts * lengths).sum())


def _build(weights: NDArray[np.int64], depth: int) -> tuple[tuple[Step, ...], NDArray[np.float64]]:
    """The tree of ``depth`` steps over leaves of these weights, and the bits each leaf costs by its tables."""
    running = [0, *accumulate(weights.tolist())]
    bounds = [0, len(weights)]
    lengths = np.zeros(len(weights))
    steps = []
    for below in range(depth - 1, -1, -1):
        children: list[int] = []
        inner = [0]
        for begin, end in pairwise(bounds):
            cuts = _split(running, begin, end, below)
            children.append(len(cuts))
            inner += cuts
        sums = np.diff(np.asarray(running, np.int64)[inner])
        frequencies = quantize(sums, np.asarray(children))
        lengths += np.repeat(np.log2(TOTAL / frequencies), np.diff(inner))
        steps.append(_step(children, frequencies, len(weights)))
        bounds = inner
    return tuple(steps), lengths


def _split(running: list[int], begin: int, end: int, below: int) -> list[int]:
    """Ends of the runs that become the children of a node over the leaves ``begin`` to ``end``.

    Runs weigh about the same, but none less than a frequency can express unless it is the last.
    """
    capacity = MAX_CHILDREN**below
    if below == 0:
        return list(range(begin + 1, end + 1))
    floor = -(-(running[end] - running[begin]) // TOTAL)
    planned = _even_children(end - begin, below + 1)
    cuts: list[int] = []
    while begin < end:
        left = running[end] - running[begin]
        share = max(floor, -(-left // max(planned - len(cuts), 1)))
        least = max(1, end - begin - (MAX_CHILDREN - len(cuts) - 1) * capacity)
        cut = bisect_left(running, running[begin] + share, begin + least, min(begin + capacity, end))
        cuts.append(cut)
        begin = cut
    return cuts


def _even_children(leaves: int, steps: int) -> int:
    """Children a node needs when all nodes below it have as many: the fewest tables for even weights."""
    return next(n for n in range(1, MAX_CHILDREN + 1) if n**steps >= leaves)


def quantize(weights: NDArray[np.int64], children: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies that sum to 4096 in each node, by Webster's method with at least 1 for everyone."""
    nodes = len(children)
    filled = np.arange(MAX_CHILDREN) < children[:, None]
    grid = np.zeros((nodes, MAX_CHILDREN), np.int64)
    grid[filled] = weights
    total = grid.sum(axis=1)
    frequencies = np.where(filled, np.maximum(grid * TOTAL // total[:, None], 1), 0)
    while True:
        excess = frequencies.sum(axis=1) - TOTAL
        low, high = np.flatnonzero(excess < 0), np.flatnonzero(excess > 0)
        if not len(low) and not len(high):
            return frequencies[filled]
        gain = np.where(filled[low], grid[low] / (frequencies[low] + 0.5), -1.0)
        frequencies[low, gain.argmax(axis=1)] += 1
        loss = np.where(frequencies[high] > 1, grid[high] / (frequencies[high] - 0.5), np.inf)
        frequencies[high, loss.argmin(axis=1)] -= 1


def _step(children: list[int], frequencies: NDArray[np.int64], alphabet: int) -> Step:
    nodes = len(children)
    return Step(
        children=np.asarray(children, np.uint8),
        tables=np.ones(nodes, np.uint16),
        map_of=np.zeros(nodes, np.uint16),
        first_map=np.zeros((0, alphabet + 1), np.uint8),
        second_map=np.zeros((0, alphabet + 1), np.uint8),
        first_refined=np.zeros((nodes, 0), np.uint8),
        second_refined=np.zeros((nodes, 0), np.uint8),
        pairs=np.zeros((nodes, 1, 1), np.uint16),
        frequencies=frequencies.astype(np.uint16),
    )
