"""The coder of one cell: an integer given several predictions of it, each with its own scale.

Each expert holds a centre and a scale; its distribution is Student's t with four degrees of freedom, whose mean
absolute deviation is its scale. The value is found by yes-or-no questions, from the centre of the blended prediction
outwards: is it the centre, which side, within one scale of it, within the next two, … and then by halving. An expert's
answer to a question is the share of its probability that lies on the near side; answers of experts and counters are
mixed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.bounded.binary import code_bit, counted, inline, learn, mix

FRACTION = 6
"""Fractional bits of predictions, errors and scales."""
EXPERTS = 4
COUNTERS = 3
INPUTS = EXPERTS + COUNTERS + 1
NODES = 24
"""Kinds of questions: centre, side, steps outwards (8), halvings by how many are left."""
CLASSES = 32
"""Classes of scale, in half octaves."""
GROUPS = 8
"""Classes of scale that have mixers of their own."""
COPIES = 16
"""Which of the nearest neighbours are alike."""
COPYING = 2 * COPIES * 16
"""Contexts of whether a cell is a copy."""
SIZES = (NODES * CLASSES * 8, NODES * 7 * 7 * COPIES, NODES * 9 * 7)
"""Entries of the three sets of counters."""
SMALLEST = 3
"""The least scale."""

_ONE = 1 << 30
_SPAN = 32  # scales that the table of the distribution reaches on each side
_FINE = 32  # entries a scale
_HALF = 1 << (FRACTION - 1)


@cache
def distribution_table() -> NDArray[np.int64]:
    """Cumulative distribution in 1 / 2**30, by IEEE operations that are exact to the last bit everywhere."""
    t = np.arange(-_SPAN * _FINE, _SPAN * _FINE + 2, dtype=np.float64) / _FINE
    square = t * t
    share = 0.5 + 0.375 * t / np.sqrt(1 + square / 4) * (1 - square / (1 + square / 4) / 12)
    return np.rint(share * _ONE).astype(np.int64)


@inline
def half_octaves(value: Any) -> Any:
    """Class of a positive number: twice its binary logarithm, rounded down; 0 below 1."""
    exponent = 0
    rest = value
    for shift in (32, 16, 8, 4, 2, 1):
        if rest >> shift > 0:
            rest >>= shift
            exponent += shift
    # 181 / 128 is the root of two.
    return 2 * exponent + (1 if value * 128 >= 181 << exponent else 0) if value > 0 else 0


@inline
def _share(edge: Any, centre: Any, scale: Any, inverse: Any, side: Any, table: Any) -> Any:
    """What an expert holds to lie on the near side of an edge, in 1 / 2**30."""
    away = (edge - centre) * side
    if away >= scale * _SPAN:
        return _ONE
    if away <= -scale * _SPAN:
        return 0
    place = (away * inverse >> 16) + _SPAN * _FINE * 256  # in 1 / 256 of an entry
    entry = place >> 8
    below = table[entry]
    return below + ((table[entry + 1] - below) * (place & 255) >> 8)


@inline
def _answer(
    bit: Any, node: Any, side: Any, near: Any, middle: Any, far: Any, context: Any, encoding: Any, coder: Any,
    data: Any, tables: Any, model: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Code whether the value is on the near side; ``near``, ``middle``, ``far``: rows of shares in ``scratch``."""
    squash, stretch, _ = tables
    weights, first, second, third = model
    shares, inputs = scratch
    group, class_, part, errors, gaps, copies = context
    for j in range(EXPERTS):
        whole = shares[far, j] - shares[near, j]
        inside = shares[middle, j] - shares[near, j]
        if whole >= 64:
            inputs[j] = stretch[min(max((inside << 12) // whole, 1), 4095)]
        else:
            inputs[j] = 0
    a = (node * CLASSES + class_) * 8 + (part if side > 0 else 7 - part)
    b = (node * 49 + (errors if side > 0 else 48 - errors)) * COPIES + copies
    c = node * 63 + (gaps if side > 0 else 62 - gaps)
    inputs[EXPERTS] = stretch[first[a] >> 20]
    inputs[EXPERTS + 1] = stretch[second[b] >> 20]
    inputs[EXPERTS + 2] = stretch[third[c] >> 20]
    inputs[EXPERTS + 3] = 64
    row = node * GROUPS + group
    probability = mix(inputs, INPUTS, weights, row, squash)
    bit = code_bit(bit, probability, encoding, coder, data)
    error = ((bit << 16) - bit) - probability
    learn(inputs, INPUTS, weights, row, error, 6)
    counted(first, a, bit, 250)
    counted(second, b, bit, 250)
    counted(third, c, bit, 250)
    return bit


@inline
def code_copy(same: Any, context: Any, encoding: Any, coder: Any, data: Any, copying: Any) -> Any:
    """Code whether a cell is the same as a neighbour, by one counter of ``copying``."""
    probability = min(max(copying[context] >> 16, 16), 65520)
    same = code_bit(same, probability, encoding, coder, data)
    counted(copying, context, same, 250)
    return same


@inline
def code_cell(
    value: Any, top: Any, experts: Any, context: Any, encoding: Any, coder: Any, data: Any, tables: Any, model: Any,
    scratch: Any,
) -> Any:  # fmt: skip
    """Code ``value`` in ``[0, top]`` and return it. ``experts``: ``[EXPERTS, 3]`` centre, scale, 2**29 / scale."""
    table, shares = tables[2], scratch[0]
    scale = experts[0, 1]
    centre = min(max((experts[0, 0] + _HALF) >> FRACTION, 0), top)
    for j in range(EXPERTS):
        shares[0, j] = 0
        shares[3, j] = _ONE
    # Which side, or the centre itself first where it is likely.
    start = centre
    side = 1
    if scale < 96:
        if top == 0:
            return centre
        for j in range(EXPERTS):
            below = _share((centre << FRACTION) - _HALF, experts[j, 0], experts[j, 1], experts[j, 2], 1, table)
            above = _share((centre << FRACTION) + _HALF, experts[j, 0], experts[j, 1], experts[j, 2], 1, table)
            if centre == 0:
                below = 0
            if centre == top:
                above = _ONE
            shares[4, j] = below
            shares[5, j] = above
            shares[1, j] = above - below
        hit = 1 if value == centre else 0
        hit = _answer(hit, 0, 1, 0, 1, 3, context, encoding, coder, data, tables, model, scratch)
        if hit:
            return centre
        if centre == 0:
            upper = 1
        elif centre == top:
            upper = 0
        else:
            for j in range(EXPERTS):
                shares[1, j] = _ONE - shares[5, j]
                shares[2, j] = _ONE - shares[5, j] + shares[4, j]
            upper = 1 if value > centre else 0
            upper = _answer(upper, 1, 1, 0, 1, 2, context, encoding, coder, data, tables, model, scratch)
        side = 1 if upper else -1
        start = centre + side
    elif centre > 0:
        for j in range(EXPERTS):
            edge = (centre << FRACTION) - _HALF
            shares[1, j] = _ONE - _share(edge, experts[j, 0], experts[j, 1], experts[j, 2], 1, table)
        upper = 1 if value >= centre else 0
        upper = _answer(upper, 2, 1, 0, 1, 3, context, encoding, coder, data, tables, model, scratch)
        if not upper:
            side = -1
            start = centre - 1
    # Steps outwards, the first about one scale wide, each twice as wide as the last.
    left = top - start if side > 0 else start  # the farthest value is start + side * left
    away = (value - start) * side
    bits = 0
    while scale >> (FRACTION + bits) > 1:
        bits += 1
    near = 0
    for j in range(EXPERTS):
        edge = (start << FRACTION) - side * _HALF
        shares[0, j] = _share(edge, experts[j, 0], experts[j, 1], experts[j, 2], side, table)
        shares[3, j] = _ONE
    step = 0
    width = 1 << bits
    while near + width <= left:
        for j in range(EXPERTS):
            edge = (start + side * (near + width) << FRACTION) - side * _HALF
            shares[1, j] = _share(edge, experts[j, 0], experts[j, 1], experts[j, 2], side, table)
        inside = 1 if away < near + width else 0
        node = 3 + min(step, 7)
        inside = _answer(inside, node, side, 0, 1, 3, context, encoding, coder, data, tables, model, scratch)
        if inside:
            for j in range(EXPERTS):
                shares[3, j] = shares[1, j]
            break
        for j in range(EXPERTS):
            shares[0, j] = shares[1, j]
        near += width
        bits += 1
        width <<= 1
        step += 1
    # Halvings of what is left: [near, near + width), cut off at the farthest value.
    while bits > 0:
        bits -= 1
        width >>= 1
        if near + width > left:
            continue
        if width << (FRACTION + 4) <= scale:
            upper = 1 if away >= near + width else 0
            upper = code_bit(upper, 32768, encoding, coder, data)
            near += width if upper else 0
            continue
        for j in range(EXPERTS):
            edge = (start + side * (near + width) << FRACTION) - side * _HALF
            shares[1, j] = _share(edge, experts[j, 0], experts[j, 1], experts[j, 2], side, table)
        inside = 1 if away < near + width else 0
        node = 11 + min(step, 1) * 6 + min(bits, 5)
        inside = _answer(inside, node, side, 0, 1, 3, context, encoding, coder, data, tables, model, scratch)
        for j in range(EXPERTS):
            if inside:
                shares[3, j] = shares[1, j]
            else:
                shares[0, j] = shares[1, j]
        near += 0 if inside else width
    return start + side * near


def initial_model() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Weights and counters of an untrained model: experts alike, counters at one half."""
    weights = np.zeros((NODES * GROUPS, INPUTS), np.int64)
    weights[:, 0] = 65536 * 2 // 5
    weights[:, 1:EXPERTS] = 65536 // 5
    weights[:, EXPERTS : EXPERTS + COUNTERS] = 65536 // 10
    first, second, third = (np.full(size, 1 << 31, np.int64) for size in SIZES)
    return weights, first, second, third
