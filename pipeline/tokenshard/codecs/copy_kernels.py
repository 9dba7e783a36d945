"""Compiled loops of the `copy` codec: one symbol says which neighbour an id repeats; other ids go down the tree.

One rANS state a stream, coded as `rans_kernels` does: the loops trust the model arrays (checked when a model is built)
but never the streams.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenshard.codecs.rans_kernels import BLOCK, inline, kernel, pop, push, table_row

_0, _1, _2, _3, _4 = (np.uint64(i) for i in range(5))
_12, _16 = np.uint64(12), np.uint64(16)
_SLOT = np.uint64((1 << 12) - 1)
_LOW = np.uint64(1 << 16)
_BLOCK = np.uint64(BLOCK)


@inline
def _at(ids: Any, base: Any, there: Any, position: Any, back: Any, none: Any) -> Any:
    """The id ``back`` places before a position, or ``none``."""
    return np.uint64(ids[base + position - (back if there else _0)]) if there else none


@inline
def _around(ids: Any, base: Any, position: Any, place: Any, grid: Any, none: Any) -> Any:
    """(context, id of the frame before, on the left, above) at a position; ``place``: its frame, row and column."""
    frame, row, column = place
    width, height = grid
    area = width * height
    before, above, beside = frame > _0, row > _0, column > _0
    right, below = column + _1 < width, row + _1 < height
    previous = _at(ids, base, before, position, area, none)
    left = _at(ids, base, beside, position, _1, none)
    up = _at(ids, base, above, position, width, none)
    up_left = _at(ids, base, above and beside, position, width + _1, none)
    up_right = _at(ids, base, above and right, position, width - _1, none)
    old_left = _at(ids, base, before and beside, position, area + _1, none)
    old_right = _at(ids, base, before and right, position, area - _1, none)
    old_up = _at(ids, base, before and above, position, area + width, none)
    old_down = _at(ids, base, before and below, position, area - width, none)
    old_corner = _at(ids, base, before and above and right, position, area + width - _1, none)
    key = np.uint64(left == old_left) << np.uint64(11) | np.uint64(up == old_up) << np.uint64(10)
    key |= np.uint64(up_right == old_corner) << np.uint64(9) | np.uint64(left == previous) << np.uint64(8)
    key |= np.uint64(up == previous) << np.uint64(7) | np.uint64(left == up) << np.uint64(6)
    key |= np.uint64(previous == old_right) << np.uint64(5) | np.uint64(previous == old_down) << _4
    key |= np.uint64(previous == old_left) << _3 | np.uint64(previous == old_up) << _2
    key |= np.uint64(up_left == up) << _1 | np.uint64(up_left == left)
    return key, previous, left, up


@inline
def _repeated(found: Any, previous: Any, left: Any, up: Any) -> Any:
    """Which source an id has: the first that fits."""
    if found == previous:
        return _0
    if found == left:
        return _1
    return _2 if found == up else _3


@inline
def _pair(which: Any, previous: Any, left: Any, up: Any, model: Any) -> Any:
    """Rows in ``classes`` of both neighbours of a model; ``which``: 0 the frame before, 1 left, 2 above."""
    row, second = model[3]
    a = previous if which[0] == _0 else left if which[0] == _1 else up
    b = previous if which[1] == _0 else left if which[1] == _1 else up
    return a * row, b * row + second


@inline
def _place(position: Any, grid: Any) -> Any:
    width, height = grid
    area = width * height
    inside = position % area
    return position // area, inside // width, inside % width


@kernel
def decode(
    words: Any, first_words: Any, num_words: Any, layout: Any, ends: Any, model: Any, which: Any, out: Any, damaged: Any
) -> None:
    """Decode the samples that are not ``damaged`` already; mark those whose stream does not end as it must.

    ``words``: the streams, then BLOCK words for each symbol an id may take. ``layout``: first id, size, grid [height,
    width] of each sample. ``ends``: [contexts, 4] cumulative frequencies.
    """
    first_ids, sizes, grids = layout
    nodes, steps, _, _, _, _, table_ends, leaves = model
    leaf = np.uint64(nodes.shape[0]) >> _2
    none = np.uint64(leaves.shape[0])
    contexts = model[5].shape[0] > 0
    last = np.uint64(words.shape[0]) - _BLOCK * (np.uint64(steps.shape[0]) + _1)
    for sample in range(np.uint64(sizes.shape[0])):
        size, base = np.uint64(sizes[sample]), np.uint64(first_ids[sample])
        if damaged[sample] or size == _0:
            continue
        grid = np.uint64(grids[sample, 1]), np.uint64(grids[sample, 0])
        at = np.uint64(first_words[sample])
        x = np.uint64(words[at]) | np.uint64(words[at + _1]) << _16
        at += _2
        for position in range(size):
            if position % _BLOCK == _0:
                at = min(at, last)
            key, previous, left, up = _around(out, base, position, _place(position, grid), grid, none)
            slot, row = x & _SLOT, key * _4
            source = (
                np.uint64(slot >= ends[row]) + np.uint64(slot >= ends[row + _1]) + np.uint64(slot >= ends[row + _2])
            )
            start = np.uint64(ends[row + source - _1]) if source > _0 else _0
            x = (np.uint64(ends[row + source]) - start) * (x >> _12) + slot - start
            if x < _LOW:
                x = x << _16 | np.uint64(words[at])
                at += _1
            found = previous if source == _0 else left if source == _1 else up
            if source == _3 or found == none:
                node = _0
                pair = _pair(which, previous, left, up, model)
                for number in range(np.uint64(steps.shape[0])):
                    first = table_row(node, pair, (steps[number, 1], steps[number, 2]), model, contexts)
                    x, symbol = pop(x, first, steps[number, 0] > _0, table_ends)
                    if x < _LOW:
                        x = x << _16 | np.uint64(words[at])
                        at += _1
                    node = np.uint64(nodes[_4 * node]) + symbol
                found = np.uint64(leaves[node - leaf])
            out[base + position] = found
        stop = np.uint64(first_words[sample] + num_words[sample])
        damaged[sample] = x != _LOW or at != stop


@kernel
def encode(
    ids: Any, layout: Any, ends: Any, model: Any, tree: Any, which: Any, scratch: Any, stops: Any, num_words: Any
) -> None:
    """Encode all samples: the stream of sample ``i`` ends just before ``scratch[stops[i]]``. See :func:`decode`."""
    first_ids, sizes, grids = layout
    nodes, steps, _, _, _, _, table_ends, leaves = model
    leaf_nodes, parents = tree
    depth, none = np.uint64(steps.shape[0]), np.uint64(leaves.shape[0])
    contexts = model[5].shape[0] > 0
    for sample in range(np.uint64(sizes.shape[0])):
        size, base = np.uint64(sizes[sample]), np.uint64(first_ids[sample])
        if size == _0:
            continue
        grid = np.uint64(grids[sample, 1]), np.uint64(grids[sample, 0])
        x, at = _LOW, np.uint64(stops[sample])
        for back in range(size):
            position = size - _1 - back
            key, previous, left, up = _around(ids, base, position, _place(position, grid), grid, none)
            found = np.uint64(ids[base + position])
            source = _repeated(found, previous, left, up)
            if source == _3:
                pair = _pair(which, previous, left, up, model)
                node = np.uint64(leaf_nodes[found])
                for rise in range(depth):
                    step = steps[depth - _1 - rise, 1], steps[depth - _1 - rise, 2]
                    parent = np.uint64(parents[node])
                    place = table_row(parent, pair, step, model, contexts) + node - np.uint64(nodes[_4 * parent])
                    node = parent
                    x, at = push(x, at, place, table_ends, scratch)
            row = key * _4
            start = np.uint64(ends[row + source - _1]) if source > _0 else _0
            frequency = np.uint64(ends[row + source]) - start
            if x >= frequency << np.uint64(20):
                at -= _1
                scratch[at] = np.uint16(x)
                x >>= _16
            quotient = x // frequency
            x = (quotient << _12) + (x - quotient * frequency) + start
        at -= _2
        scratch[at], scratch[at + _1] = np.uint16(x), np.uint16(x >> _16)
        num_words[sample] = np.uint64(stops[sample]) - at


@kernel
def observe(ids: Any, layout: Any, none: Any, keys: Any, sources: Any) -> None:
    """The context (uint16) and the source (uint8) of every id."""
    first_ids, sizes, grids = layout
    for sample in range(np.uint64(sizes.shape[0])):
        grid = np.uint64(grids[sample, 1]), np.uint64(grids[sample, 0])
        base = np.uint64(first_ids[sample])
        for position in range(np.uint64(sizes[sample])):
            key, previous, left, up = _around(ids, base, position, _place(position, grid), grid, np.uint64(none))
            keys[base + position] = key
            sources[base + position] = _repeated(np.uint64(ids[base + position]), previous, left, up)
