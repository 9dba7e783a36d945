"""Fitting of the second maps of :mod:`.lapped`, which smooth what the `grid` tokenizer decodes across patches.

Weighted least squares, a few times over. A patch counts in inverse proportion to the mean error that the maps before
left it (iteratively reweighted least squares, Holland and Welsch 1977), so that the mean absolute error falls, not that
of the roughest patches. A cell at a border of patches is drawn towards the error of the cell across it, so that an
error goes on there instead of jumping. No direction is special: each patch is seen in all the ways it can be mirrored
or turned, which leaves an eighth of the weights to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.tokenizers import lapped

Real = NDArray[np.float64]
ROUNDS = 4
SAMPLE = 60_000
"""Patches that maps are fitted to, about."""
PULL = 1.0
"""How much of the jump of an error across a border counts beside the error itself."""
FEW = 16
"""Maps are fitted as if they had so many patches more, of all kinds: those that have none do as all."""


class Decoded(NamedTuple):
    """A field in patches, and what its tokens say before the second map, in 1 / UNIT steps."""

    truth: Real
    """[rows, columns, d]"""
    valid: NDArray[np.bool_]
    """[rows, columns, d]"""
    there: NDArray[np.bool_]
    """[rows, columns]"""
    means: Real
    """[rows, columns]"""
    cells: Real
    """[rows, columns, d]"""
    shapes: NDArray[np.int64]
    """[rows, columns]: how many a patch has"""


class _Seen(NamedTuple):
    """What the maps see of a field, and what they should add."""

    inputs: Real
    wanted: Real
    valid: NDArray[np.bool_]
    shapes: NDArray[np.int64]


def fit_window(
    fields: Sequence[Decoded], kinds: int, patch: tuple[int, int], floor: int, seed: int
) -> NDArray[np.int32]:
    """Maps [kinds, cells of a patch and its margin, d] for patches with 0, 1, … shapes. ``floor``: the least gain."""
    seen = [_seen(fields[number], patch) for number in _drawn([field.there.size for field in fields], seed)]
    turns = symmetries(patch)
    maps = np.zeros((kinds, len(turns[0][0]), len(turns[0][1])))
    for number in range(ROUNDS):
        grams = np.zeros((kinds, maps.shape[1], maps.shape[1]))
        products, counts = np.zeros(maps.shape), np.zeros(kinds)
        for field in seen:
            error = _error(field, maps)
            weight = 1 / np.maximum(np.abs(error).mean(axis=2, keepdims=True), floor / 8)
            wanted = field.wanted - pulled(error, field.valid, patch) if number else field.wanted
            whole = field.valid.all(axis=2)
            for kind in range(kinds):
                chosen = whole & (field.shapes == kind)
                weighted = field.inputs[chosen] * weight[chosen]
                grams[kind] += weighted.T @ field.inputs[chosen]
                products[kind] += weighted.T @ wanted[chosen]
                counts[kind] += chosen.sum()
        grams = np.add.reduce([grams[:, inputs[:, None], inputs] for inputs, _ in turns])
        products = np.add.reduce([products[:, inputs[:, None], outputs] for inputs, outputs in turns])
        maps = _solved(grams, products, counts)
    return lapped.stored(maps, lapped.WINDOW_BITS)


def symmetries(patch: tuple[int, int]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Orders of the cells of a patch with its margin, and of the patch, for each way to mirror or turn it."""
    height, width = patch
    seen = np.arange((height + 2 * lapped.MARGIN) * (width + 2 * lapped.MARGIN)).reshape(-1, width + 2 * lapped.MARGIN)
    own = np.arange(height * width).reshape(height, width)
    found = []
    for rows, columns, turned in product((1, -1), (1, -1), (False, True) if height == width else (False,)):
        both = [(cells.T if turned else cells)[::rows, ::columns].reshape(-1) for cells in (seen, own)]
        found.append((both[0], both[1]))
    return found


def pulled(error: Real, valid: NDArray[np.bool_], patch: tuple[int, int]) -> Real:
    """Where cells [rows, columns, d] at borders of patches are drawn to, by errors of the cells across; 0 elsewhere."""
    flat, known = lapped.joined(np.where(valid, error, 0), patch), lapped.joined(valid.astype(np.float64), patch)
    sums, counts = np.zeros(flat.shape), np.zeros(flat.shape)
    for side, arrays in zip(patch, ((flat, known, sums, counts), (flat.T, known.T, sums.T, counts.T)), strict=True):
        before, after = slice(side - 1, -1, side), slice(side, None, side)
        for values, total in (arrays[0], arrays[2]), (arrays[1], arrays[3]):
            total[before] += values[after]
            total[after] += values[before]
    return lapped.patches(PULL * sums / (1 + PULL * counts), patch)


def _drawn(sizes: Sequence[int], seed: int) -> list[int]:
    """Numbers of fields drawn at random until they have SAMPLE patches; at least one."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    before = np.cumsum([0, *(sizes[number] for number in order)])[:-1]
    return sorted(int(number) for number in order[before < SAMPLE])


def _seen(field: Decoded, patch: tuple[int, int]) -> _Seen:
    inputs = lapped.windows(field.cells, field.there, patch) - (field.means * lapped.UNIT)[..., None]
    return _Seen(inputs, field.truth - field.cells, field.valid, field.shapes)


def _error(field: _Seen, maps: Real) -> Real:
    """What the maps leave [rows, columns, d]."""
    error = field.wanted.copy()
    for kind, one in enumerate(maps):
        chosen = field.shapes == kind
        error[chosen] -= field.inputs[chosen] @ one
    return error


def _solved(grams: Real, products: Real, counts: Real) -> Real:
    """Maps from the products of each kind [kinds, f, f] and [kinds, f, d], with FEW patches of all."""
    every = np.trace(grams.sum(axis=0))
    maps = np.zeros(products.shape)
    for kind, count in enumerate(counts):
        own = count / max(np.trace(grams[kind]), 1)
        others = FEW / max(every, 1)
        maps[kind] = lapped.solved(
            own * grams[kind] + others * grams.sum(axis=0), own * products[kind] + others * products.sum(axis=0)
        )
    return maps
