"""Fitting the `context` codec with contexts: a tree of similar ids, classes of neighbours, tables for class pairs.

Runs once a dataset, on a pilot sample. Three things are learnt: which ids share a subtree (bisection of an embedding of
their co-occurrence with neighbours), which neighbour ids tell the same about a step (their class), and which pairs of
classes share a table (`clustering`). How many classes and tables a step gets is measured on
samples that were not fitted on, with the bytes of the model charged to the ids of the whole dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from tokenshard.codecs.base import Grids, Ids, sample_sizes
from tokenshard.codecs.clustering import CLUSTERS, Symbols, node_tables
from tokenshard.codecs.model import (
    MAX_RUNTIME_BYTES,
    MAX_TABLES,
    ContextModel,
    Neighbour,
    Pilot,
    Step,
    StepHeader,
    runtime_bytes,
)
from tokenshard.codecs.neighbours import neighbour_strides
from tokenshard.codecs.similarity import Tree, similarity_tree
from tokenshard.codecs.tree import fit_order0, quantize

Array = NDArray[Any]

_HELD_OUT = 5  # every fifth sample
_LADDERS = (
    ((16, 64), (48, 256), (128, 1024)),
    ((8, 4), (16, 16), (32, 64), (32, 128)),
    ((4, 2), (8, 8), (16, 16), (16, 32)),
)
"""(classes of a neighbour, tables of a node) for step 0, 1, and deeper; a step may also go without contexts."""

_TIE = 1.01
"""An order-0 model is taken where it costs no more than this many times one with contexts."""

_LEAST_IDS = 4096
"""Of a pilot that can say anything about contexts."""

_MANY_IDS = 1 << 20
"""Of a pilot that probably pays for the largest sizes."""


class Earlier(NamedTuple):
    """The level before, of the same samples."""

    ids: Ids
    alphabet: int


@dataclass(frozen=True)
class _Observed:
    """The positions of a pilot that count: ids and both neighbours (int32 [ids])."""

    ids: Array
    first: Array
    second: Array

    def where(self, mask: Array) -> _Observed:
        return _Observed(self.ids[mask], self.first[mask], self.second[mask])


def fit_contexts(
    ids: Ids,
    grids: Grids,
    alphabet: int,
    earlier: Earlier | None = None,
    expected_ids: int | None = None,
    coded: NDArray[np.bool_] | None = None,
) -> ContextModel:
    """The model for samples like these; with one table a step, or the order-0 model, where contexts do not pay.

    ``expected_ids``: ids of the whole dataset, by default those of the pilot. ``coded``: the ids that the model is for,
    by default all of them; the others are neighbours only.
    """
    sizes = sample_sizes(grids)
    own = ids if coded is None else ids[coded]
    order0 = fit_order0(np.bincount(own, minlength=alphabet), len(grids))
    if alphabet == 1 or len(own) < max(_LEAST_IDS, alphabet // 4):
        return order0
    held = np.repeat(np.arange(len(grids)) % _HELD_OUT == _HELD_OUT - 1, sizes)
    if not held.any() or held.all():  # few and large samples: the last part of all their ids
        held = np.arange(len(ids)) * _HELD_OUT // len(ids) == _HELD_OUT - 1
    around = {name: _neighbour(name, ids, grids, alphabet, earlier) for name in _candidates(grids.shape[1], earlier)}
    if coded is not None:
        around, held = {name: found[coded] for name, found in around.items()}, held[coded]
        if not held.any() or held.all():
            held = np.arange(len(own)) % _HELD_OUT == _HELD_OUT - 1
    alphabets = {name: _alphabet(name, alphabet, earlier) for name in around}
    tree = similarity_tree(own, alphabet, [(around[name], alphabets[name]) for name in around])
    groups = {name: tree.groups_of(number, name != "earlier") for number, name in enumerate(around)}
    spread = 1 / max(expected_ids or len(own), 1)

    def fitter(pair: tuple[Neighbour, Neighbour]) -> _Fitter:
        observed = _Observed(own.astype(np.int32), around[pair[0]], around[pair[1]])
        sides = (groups[pair[0]], alphabets[pair[0]]), (groups[pair[1]], alphabets[pair[1]])
        return _Fitter(tree, observed, held, sides, spread)

    pairs = _pairs(tuple(around))
    best = pairs[0] if len(pairs) == 1 else min(pairs, key=lambda pair: fitter(pair).cost(0, _LADDERS[0][1])[0])
    chosen = fitter(best)
    steps, cost = chosen.choose()
    flat = fit_order0(np.bincount(own[~held], minlength=alphabet), len(grids))
    flat_cost = _bits(flat, chosen.observed.where(held)) / held.sum() + 8 * len(flat.to_bytes()) * spread
    if flat_cost <= _TIE * cost:
        return order0
    pilot = Pilot(samples=len(grids), ids=len(own), bits_per_id=0)
    of_earlier = earlier.alphabet if earlier is not None and best[1] == "earlier" else None
    model = ContextModel(alphabet, best, steps, tree.leaves.astype(ids.dtype), pilot, of_earlier)
    return model.measured(round(_bits(model, chosen.observed) / len(own), 4))


def _candidates(rank: int, earlier: Earlier | None) -> tuple[Neighbour, ...]:
    names: tuple[Neighbour, ...] = (("left", "left2"), ("left", "up"), ("left", "up", "previous"))[rank - 1]
    return names if earlier is None else (*names, "earlier")


def _pairs(names: tuple[Neighbour, ...]) -> list[tuple[Neighbour, Neighbour]]:
    return [(first, second) for at, first in enumerate(names) for second in names[at + 1 :]]


def _alphabet(name: Neighbour, alphabet: int, earlier: Earlier | None) -> int:
    return earlier.alphabet if name == "earlier" and earlier is not None else alphabet


def _neighbour(name: Neighbour, ids: Ids, grids: Grids, alphabet: int, earlier: Earlier | None) -> Array:
    if name == "earlier" and earlier is not None:
        return earlier.ids.astype(np.int32)
    from tokenshard.codecs import fit_kernels

    sizes = sample_sizes(grids)
    strides, periods = (array[:, 0].astype(np.int64) for array in neighbour_strides(grids, (name, name)))
    found = np.empty(len(ids), np.int32)
    fit_kernels.neighbour_ids(np.ascontiguousarray(ids), sizes, strides, periods, alphabet, found)
    return found


class _Fitter:
    """Fits the steps of one tree for one pair of neighbours, each to a part of the pilot or to all of it."""

    def __init__(
        self, tree: Tree, observed: _Observed, held: Array, sides: tuple[tuple[Array, int], ...], spread: float
    ) -> None:
        self.tree, self.observed, self.sides, self.spread = tree, observed, sides, spread
        self.fitted, self.rest = observed.where(~held), observed.where(held)

    def choose(self) -> tuple[tuple[Step, ...], float]:
        """The steps, fitted to all of the pilot at the sizes that cost least on held-out samples, and that cost."""
        steps: list[Step] = []
        total = 0.0
        bare = [self.step(number, (1, 1), self.fitted) for number in range(len(self.tree.children))]
        for number, plain in enumerate(bare):
            size, cost = (1, 1), self._cost_of(plain, number)
            if number == 0 or steps[0].has_contexts:
                other, other_cost = self._best_size(number, [*steps, *bare[number + 1 :]])
                size, cost = (other, other_cost) if other_cost < cost else (size, cost)
            total += cost
            steps.append(self.step(number, size, self.observed))
        return tuple(steps), total

    def _best_size(self, number: int, others: list[Step]) -> tuple[tuple[int, int], float]:
        """The cheapest size with contexts and its cost; tried in the order that a pilot of that many ids rarely leaves
        before the best, up to the first that is dearer."""
        best, least = (1, 1), np.inf
        ladder = _LADDERS[min(number, 2)]
        order = ladder if len(self.observed.ids) < _MANY_IDS else ladder[::-1]
        for size in order if self.tree.maps(number, self.alphabets) else ():
            if not self._fits(number, size, others):
                continue
            cost, _ = self.cost(number, size)
            if cost > least:
                break
            best, least = size, cost
        return best, least

    def _fits(self, number: int, size: tuple[int, int], others: list[Step]) -> bool:
        """Whether a model may hold a step of that size beside the others."""
        nodes, (classes, tables) = len(self.tree.children[number]), size
        maps = int(self.tree.maps(number, self.alphabets)[0].max()) + 1
        clusters = 0 if maps == nodes else CLUSTERS * classes
        largest = StepHeader(
            nodes=nodes, tables=nodes * tables, class_maps=maps, clusters=(clusters, clusters),
            classes=(classes, classes), frequencies=1,
        )  # fmt: skip
        headers = [*(other.header for other in others), largest]
        small = runtime_bytes(headers, *self.alphabets) <= MAX_RUNTIME_BYTES
        return small and sum(header.tables for header in headers) <= MAX_TABLES

    def cost(self, number: int, size: tuple[int, int]) -> tuple[float, Step]:
        """Bits a held-out id of a step of that size, its share of the model file included; and the step."""
        step = self.step(number, size, self.fitted)
        return self._cost_of(step, number), step

    @property
    def alphabets(self) -> tuple[int, int]:
        return self.sides[0][1], self.sides[1][1]

    def _cost_of(self, step: Step, number: int) -> float:
        stored = sum(len(zstandard.compress(array.tobytes(), 3)) for array in step.arrays())
        rest = self.rest
        bits = step_bits(step, *self.tree.symbols(number, rest.ids), rest.first, rest.second)
        return bits / len(rest.ids) + 8 * stored * self.spread

    def step(self, number: int, size: tuple[int, int], observed: _Observed) -> Step:
        """Fit one step with that many classes of a neighbour and tables of a node."""
        nodes, symbols = self.tree.symbols(number, observed.ids)
        children = self.tree.children[number]
        classes, tables = min(size[0], max(self.alphabets) + 1), size[1]
        if classes == 1:
            return _bare_step(children, nodes, symbols, self.alphabets)
        map_of = self.tree.maps(number, self.alphabets)[0]
        firsts = np.searchsorted(map_of, np.arange(map_of.max() + 2))
        order = np.argsort(map_of[nodes], kind="stable")
        parts = np.split(order, np.searchsorted(map_of[nodes[order]], np.arange(1, map_of.max() + 1)))
        contexts, shared = [], len(parts) < len(children)
        for part, (first, last) in zip(parts, pairwise(firsts), strict=True):
            own = Symbols(nodes[part] - first, symbols[part], int(last - first), int(children.max()))
            around = (observed.first[part], observed.second[part])
            sides = zip(around, self.sides, strict=True)
            each_side = [(ids, groups, alphabet) for ids, (groups, alphabet) in sides]
            contexts.append(own.contexts(each_side, classes, shared))
        first_map, second_map, first_refined, second_refined, counts = zip(*contexts, strict=True)
        each = zip(np.concatenate(counts), children, strict=True)
        fitted = [node_tables(node_counts[:, :, :own], tables) for node_counts, own in each]
        number_of_tables = np.array([len(table) for _, table in fitted])
        weights = np.concatenate([table.reshape(-1) for _, table in fitted])
        return Step(
            children=children.astype(np.uint8),
            tables=number_of_tables.astype(np.uint16),
            map_of=map_of.astype(np.uint16),
            first_map=np.stack(first_map).astype(np.uint8),
            second_map=np.stack(second_map).astype(np.uint8),
            first_refined=np.concatenate(first_refined).astype(np.uint8),
            second_refined=np.concatenate(second_refined).astype(np.uint8),
            pairs=np.stack([labels for labels, _ in fitted]).astype(np.uint16),
            frequencies=quantize(weights, np.repeat(children, number_of_tables)).astype(np.uint16),
        )


def step_bits(step: Step, nodes: Array, symbols: Array, first: Array, second: Array) -> float:
    """Bits that a step's tables spend on symbols at nodes whose neighbours are ``first`` and ``second``."""
    lengths = np.repeat(step.children.astype(np.int64), step.tables)
    begins = np.cumsum(lengths) - lengths
    tables = step.tables.astype(np.int64)
    table = (np.cumsum(tables) - tables)[nodes]
    if step.has_contexts:
        maps = step.map_of[nodes]
        a, b = step.first_map[maps, first], step.second_map[maps, second]
        if step.first_refined.shape[1]:
            a, b = step.first_refined[nodes, a], step.second_refined[nodes, b]
        table = table + step.pairs[nodes, a, b]
    used = np.bincount(begins[table] + symbols, minlength=len(step.frequencies))
    return float((used * (12 - np.log2(step.frequencies))).sum())


def _bits(model: ContextModel, observed: _Observed) -> float:
    """Bits that a model's tables spend on the observed ids."""
    leaf_of = np.empty(model.alphabet, np.int64)
    leaf_of[model.leaves] = np.arange(model.alphabet)
    below, total = leaf_of[observed.ids], 0.0
    for step in reversed(model.steps):
        ends = np.cumsum(step.children, dtype=np.int64)
        nodes = np.searchsorted(ends, below, "right")
        total += step_bits(step, nodes, below - (ends - step.children)[nodes], observed.first, observed.second)
        below = nodes
    return total


def _bare_step(children: Array, nodes: Array, symbols: Array, alphabets: tuple[int, int]) -> Step:
    begins = np.cumsum(children) - children
    counts = np.bincount(begins[nodes] + symbols, minlength=int(children.sum()))
    weights = (counts * 64 + 1).astype(np.int64)
    return Step(
        children=children.astype(np.uint8),
        tables=np.ones(len(children), np.uint16),
        map_of=np.zeros(len(children), np.uint16),
        first_map=np.zeros((0, alphabets[0] + 1), np.uint8),
        second_map=np.zeros((0, alphabets[1] + 1), np.uint8),
        first_refined=np.zeros((len(children), 0), np.uint8),
        second_refined=np.zeros((len(children), 0), np.uint8),
        pairs=np.zeros((len(children), 1, 1), np.uint16),
        frequencies=quantize(weights, children).astype(np.uint16),
    )
