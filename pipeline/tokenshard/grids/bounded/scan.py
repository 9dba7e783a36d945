"""Scans of a plane of integers: which cell comes when, and how it is predicted from those before it.

The causal scan goes row by row. The hierarchical one codes a coarse lattice that way and then halves its spacing again
and again, first the centres of its squares, then the midpoints of their sides, so that most cells lie between known
ones. Both are passes of one loop: a pass has a lattice of cells, taps (offsets of known cells) and a set of predictors
over them. Cells that are not valid are not coded and are no one's neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.bounded.binary import finish, inline, kernel, start
from tokenshard.grids.bounded.cells import (
    CLASSES,
    COPYING,
    EXPERTS,
    FRACTION,
    GROUPS,
    INPUTS,
    SMALLEST,
    code_cell,
    code_copy,
    half_octaves,
)

CAUSAL, CENTRES, SIDES = range(3)
KINDS = 3
TAPS = 20
GUIDED = 2
"""Taps, the last ones, whose place a guide takes: another guess of the plane that the decoder has too."""
NEAR = 8
"""Neighbours whose errors tell the scale of the next."""
RATIOS = CLASSES * 12
_NONE = (0, 0)

OFFSETS: NDArray[np.int64] = np.array(
    [
        [(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-2, 1), (-2, -1), (-1, -2), (-1, 2), (0, -3), (-3, 0),
         (-2, -2), (-2, 2), (-1, -3), (-1, 3), (-3, -1), (-3, 1), (0, -4), (-4, 0)],
        [(-1, -1), (1, 1), (-1, 1), (1, -1), (-1, -3), (1, 3), (-1, 3), (1, -3), (-3, -1), (3, 1), (-3, 1), (3, -1),
         (0, -2), (-2, 0), (-2, -2), (-2, 2), (-3, -3), (3, 3), (-3, 3), (3, -3)],
        [(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -2), (1, 2), (-1, 2), (1, -2), (-2, -1), (2, 1), (-2, 1), (2, -1),
         (-1, -1), (-1, 1), (0, -2), (-2, 0), (-3, 0), (3, 0), (0, -3), (0, 3)],
    ],
    np.int64,
)  # fmt: skip
"""``[KINDS, TAPS, 2]``: rows and columns from the cell, in steps of the pass; the first four are the nearest."""

NEAR_OFFSETS: NDArray[np.int64] = np.array(
    [
        [(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-1, 2)],
        [(0, -2), (-2, 0), (-2, -2), (-2, 2), (-1, -1), (1, 1), (-1, 1), (1, -1)],
        [(-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, 0), (1, 0), (0, -1), (0, 1)],
    ],
    np.int64,
)
"""``[KINDS, NEAR, 2]``: where errors are looked up; the first two also tell their signs."""
NEAR_WEIGHTS: NDArray[np.int64] = np.array(
    [[4, 4, 2, 2, 1, 1, 1, 1], [3, 3, 1, 1, 1, 1, 1, 1], [2, 2, 1, 1, 1, 1, 1, 1]]
)


@inline
def _simple(kind: Any, values: Any, there: Any, reference: Any) -> Any:
    """A predictor without weights, relative to ``reference``, in fixed point."""
    a, b, c, d = values[0], values[1], values[2], values[3]
    if kind == CAUSAL:
        if not there[0]:
            return b << FRACTION
        if not there[1] or not there[2]:
            return a << FRACTION
        # The median edge detector of JPEG-LS.
        low, high = min(a, b), max(a, b)
        return min(max(a + b - c, low), high) << FRACTION
    first, second = abs(a - b) + 1, abs(c - d) + 1
    if not (there[0] and there[1]):
        first = second if not (there[2] and there[3]) else 1 << 20
    elif not (there[2] and there[3]):
        second = 1 << 20
    # Along the direction that changes less; the share is in 1 / 1024 so that nothing overflows.
    total = first + second
    share = (second << 10) // total
    share = (share * share << 10) // (share * share + (1024 - share) * (1024 - share))
    return (((a + b) * share + (c + d) * (1024 - share)) << (FRACTION - 1)) >> 10


@inline
def _signed_class(error: Any, scale: Any) -> Any:
    """Seven classes of an error, against a scale."""
    size = abs(error)
    step = 0 if size * 4 < scale else (1 if size < scale else (2 if size < 3 * scale else 3))
    return 3 + (step if error > 0 else -step)


@inline
def _gap_class(gap: Any, scale: Any, most: Any) -> Any:
    """Classes of how far two predictions are apart, from 0 to ``2 * most``."""
    size = abs(gap)
    step = 0
    edge = scale >> 3
    while step < most and size > edge:
        step += 1
        edge = edge * 2 + 1
    return most + (step if gap > 0 else -step)


@inline
def _follow(
    kind: Any, step: Any, y: Any, x: Any, reference: Any, count: Any, guide: Any, offsets: Any, values: Any, there: Any
) -> None:  # fmt: skip
    """Set the guided taps: how the guide goes on from the nearest cells to this one, and to those behind it."""
    total = 0
    for i in range(4):
        if there[i]:
            total += guide[y + offsets[kind, i, 0] * step, x + offsets[kind, i, 1] * step]
    moved = reference - total // count
    right, below = min(x + step, guide.shape[1] - 1), min(y + step, guide.shape[0] - 1)
    values[TAPS - 2] = ((guide[y, right] + guide[below, x]) >> 1) + moved
    values[TAPS - 1] = guide[y, x] + moved
    there[TAPS - 2], there[TAPS - 1] = 1, 1


@inline
def code_pass(
    kind: Any, step: Any, first_row: Any, row_step: Any, starts: Any, column_step: Any, top: Any, encoding: Any,
    cells: Any, geometry: Any, predictors: Any, coder: Any, data: Any, tables: Any, model: Any, work: Any,
) -> None:  # fmt: skip
    """Code the cells of one lattice. ``starts``: first columns of even and odd rows of the lattice."""
    plane, valid, known, errors, guide = cells
    height, width = plane.shape
    offsets, near_offsets, near_weights = geometry
    fixed, adaptive, ratios = predictors
    counters_model, scratch, last = work[0], work[1], work[2]
    values, there, experts, spread, centres = work[3], work[4], work[5], work[6], work[7]
    slack = last[2 + EXPERTS]
    width_of_step = 2 * slack + 1
    copying = work[8]
    repeats = kind == CAUSAL and copying.shape[0] > 0
    guided = guide.shape[0] > 0
    trail = 0
    shift = last[1]
    reach = 4 * step
    for y in range(first_row, height, row_step):
        first_column = starts[0] if ((y - first_row) // row_step) % 2 == 0 else starts[1]
        for x in range(first_column, width, column_step):
            if not valid[y, x]:
                continue
            inner = reach <= y < height - reach and reach <= x < width - reach
            # Values of the taps, relative to the mean of the nearest.
            total, count = 0, 0
            for i in range(TAPS):
                v, u = y + offsets[kind, i, 0] * step, x + offsets[kind, i, 1] * step
                if (inner or (0 <= v < height and 0 <= u < width)) and known[v, u]:
                    values[i] = plane[v, u]
                    there[i] = 1
                    if i < 4:
                        total += values[i]
                        count += 1
                else:
                    there[i] = 0
            if guided:
                there[TAPS - 2], there[TAPS - 1] = 0, 0
            if count > 0:
                reference = total // count
                if guided:
                    _follow(kind, step, y, x, reference, count, guide, offsets, values, there)
            elif guided:
                reference = guide[y, x]
            else:
                reference = last[0]
                for i in range(TAPS - 1, 3, -1):
                    if there[i]:
                        reference = values[i]
            # Which neighbours are alike, as in cells that a resampling has copied.
            if kind == CAUSAL:
                copies = (1 if there[2] and values[0] == values[2] else 0) + (2 if values[1] == values[2] else 0)
                copies += (4 if values[0] == values[4] else 0) + (8 if values[1] == values[3] else 0)
            else:
                copies = (1 if values[0] == values[1] else 0) + (2 if values[2] == values[3] else 0)
            energy, texture = 64 * TAPS, 0
            linear, learned = 0, 0
            for i in range(TAPS):
                value = values[i] - reference if there[i] else 0
                values[i] = value
                if i < 8:
                    texture += abs(value)
                value >>= shift
                energy += value * value
                linear += fixed[kind, i] * value
                learned += adaptive[kind, i] * value
            base = reference << FRACTION
            most = top << FRACTION
            experts[1, 0] = min(max(base + ((linear << shift) >> (16 - FRACTION)), 0), most)
            experts[2, 0] = min(max(base + ((learned << shift) >> (16 - FRACTION)), 0), most)
            experts[3, 0] = min(max(base + _simple(kind, values, there, reference), 0), most)
            # Scales from the errors nearby.
            weight = 0
            for j in range(EXPERTS):
                spread[j] = 0
            for i in range(NEAR):
                v, u = y + near_offsets[kind, i, 0] * step, x + near_offsets[kind, i, 1] * step
                if (inner or (0 <= v < height and 0 <= u < width)) and known[v, u]:
                    part = near_weights[kind, i]
                    weight += part
                    for j in range(EXPERTS):
                        spread[j] += part * abs(np.int64(errors[v, u, j]))
            for j in range(EXPERTS):
                spread[j] = spread[j] // weight + 2 if weight > 0 else last[2 + j]
            # The blend: weights fall with the square of the recent error.
            least = min(spread[1], spread[2], spread[3])
            total, whole = 0, 0
            for j in range(1, EXPERTS):
                part = (least << 8) // spread[j]
                part = part * part
                total += part * ((experts[j, 0] - base) >> shift)
                whole += part
            blend = min(max(base + ((total // whole) << shift), 0), most)
            experts[0, 0] = blend
            class_ = min(half_octaves(spread[0]), CLASSES - 1)
            relative = min(max(half_octaves(texture * 8 + 1) - class_ - 2, 0), 11)
            place = (kind * 2) * RATIOS + class_ * 12 + relative
            for j in range(EXPERTS):
                at = (
                    place
                    if j == 0
                    else (kind * 2 + 1) * RATIOS + (j * CLASSES + min(half_octaves(spread[j]), CLASSES - 1))
                )
                ratio = (ratios[at, 0] << 12) // ratios[at, 1]
                scale = max(spread[j] * min(max(ratio, 256), 65536) >> 12, SMALLEST)
                experts[j, 1] = scale
            scale = experts[0, 1]
            signs = 24
            v, u = y + near_offsets[kind, 0, 0] * step, x + near_offsets[kind, 0, 1] * step
            if v >= 0 and 0 <= u < width and known[v, u]:
                signs += 7 * (_signed_class(np.int64(errors[v, u, 0]), scale) - 3)
            v, u = y + near_offsets[kind, 1, 0] * step, x + near_offsets[kind, 1, 1] * step
            if v >= 0 and 0 <= u < width and known[v, u]:
                signs += _signed_class(np.int64(errors[v, u, 0]), scale) - 3
            gaps = 7 * _gap_class(experts[3, 0] - blend, scale, 4) + _gap_class(experts[2, 0] - blend, scale, 3)
            part = ((blend + (1 << (FRACTION - 1))) & ((1 << FRACTION) - 1)) >> (FRACTION - 3)
            # In steps of what is allowed to be wrong, from the blended prediction.
            predicted = min((blend + (1 << (FRACTION - 1))) >> FRACTION, top)
            lowest = -((predicted + slack) // width_of_step)
            highest = (top - predicted + slack) // width_of_step
            for j in range(EXPERTS):
                away = experts[j, 0] - (predicted << FRACTION)
                centres[j] = experts[j, 0]
                own = experts[j, 1]
                if slack > 0:
                    away //= width_of_step
                    own = max(own // width_of_step, SMALLEST)
                experts[j, 0] = away - (lowest << FRACTION)
                experts[j, 1] = own
                experts[j, 2] = (1 << 29) // own
            half = half_octaves(experts[0, 1])
            context = (min(max(half // 2 - 2, 0), GROUPS - 1), min(half, CLASSES - 1), part, signs, gaps, copies)
            # Where cells repeat: whether this one is that above or, if not, that to the left.
            copied = 0
            if repeats:
                place_of = copies * 16 + trail
                if there[1]:
                    same = 1 if plane[y, x] == plane[y - 1, x] else 0
                    if code_copy(same, place_of, encoding, coder, data, copying):
                        copied = 1
                if copied == 0 and there[0] and not (there[1] and values[0] == values[1]):
                    same = 1 if plane[y, x] == plane[y, x - 1] else 0
                    if code_copy(same, COPYING // 2 + place_of, encoding, coder, data, copying):
                        copied = 2
                trail = (trail & 3) << 2 | copied
            if copied > 0:
                found = (plane[y - 1, x] if copied == 1 else plane[y, x - 1]) - predicted
            else:
                asked = (plane[y, x] - predicted + slack) // width_of_step - lowest
                found = code_cell(
                    asked, highest - lowest, experts, context, encoding, coder, data, tables, counters_model, scratch
                )
                found += lowest
            found = min(max(predicted + found * width_of_step, 0), top)
            plane[y, x] = found
            known[y, x] = 1
            last[0] = found
            # Learn from it.
            true = found << FRACTION
            for j in range(EXPERTS):
                error = true - centres[j]
                errors[y, x, j] = min(max(error, -(1 << 30)), 1 << 30)
                size = min(abs(error), 8 * spread[j])
                at = (
                    place
                    if j == 0
                    else (kind * 2 + 1) * RATIOS + (j * CLASSES + min(half_octaves(spread[j]), CLASSES - 1))
                )
                ratios[at, 0] += size
                ratios[at, 1] += spread[j]
                ratios[at, 2] += 1
                if ratios[at, 2] > 400:
                    ratios[at, 0] >>= 1
                    ratios[at, 1] = (ratios[at, 1] >> 1) + 1
                    ratios[at, 2] >>= 1
                last[2 + j] = min(max(last[2 + j] + ((size - last[2 + j]) >> 3), 2), 1 << 40)
            error = min(max(true - centres[2], -(1 << 36)), 1 << 36) >> shift
            error = min(max(error, -(16 * scale >> shift) - 1), (16 * scale >> shift) + 1)
            gain = (error << 26) // energy
            for i in range(TAPS):
                moved = adaptive[kind, i] + ((gain * (values[i] >> shift) + (1 << 21)) >> 22)
                adaptive[kind, i] = min(max(moved, -(1 << 18)), 1 << 18)


@kernel
def code_plane(
    plane: Any, valid: Any, levels: Any, top: Any, slack: Any, repeats: Any, encoding: Any, data: Any, tables: Any,
    geometry: Any, predictors: Any, model: Any, guide: Any,
) -> Any:  # fmt: skip
    """Code all valid cells of ``plane`` (int64 ``[h, w]``, values in ``[0, top]``); returns the bytes of the stream.

    ``guide``: int64 ``[h, w]``, what the plane may be about, or ``[0, 0]``. ``repeats``: the causal scan first asks
    whether a cell is a copy (``slack`` 0 only). ``levels``: 0 for the causal scan, else
    halvings of the coarse lattice's spacing. The result exceeds the size of ``data`` when that was too small; then
    nothing was written beyond it.
    """
    height, width = plane.shape
    known = np.zeros((height, width), np.uint8)
    errors = np.zeros((height, width, EXPERTS), np.int32)
    cells = (plane, valid, known, errors, guide)
    coder = np.zeros(5, np.int64)
    shares, inputs = np.zeros((6, EXPERTS), np.int64), np.zeros(INPUTS, np.int64)
    last = np.zeros(3 + EXPERTS, np.int64)
    last[2 + EXPERTS] = slack
    last[0] = top >> 1
    while top >> last[1] >= 1 << 24:
        last[1] += 1
    for j in range(EXPERTS):
        last[2 + j] = max(top << FRACTION >> 3, 2)
    work = (
        model, (shares, inputs), last, np.zeros(TAPS, np.int64), np.zeros(TAPS, np.int64),
        np.zeros((EXPERTS, 3), np.int64), np.zeros(EXPERTS, np.int64),
        np.zeros(EXPERTS, np.int64), np.full(COPYING if repeats else 0, 1 << 31, np.int64),
    )  # fmt: skip
    start(encoding, coder, data)
    for number in range(1 + 2 * levels):
        if number == 0:
            kind, step = CAUSAL, 1 << levels
            first_row, row_step, starts, column_step = 0, step, (0, 0), step
        else:
            step = 1 << (levels - (number + 1) // 2)
            if number % 2 == 1:
                kind, first_row, row_step, starts, column_step = CENTRES, step, 2 * step, (step, step), 2 * step
            else:
                kind, first_row, row_step, starts, column_step = SIDES, 0, step, (step, 0), 2 * step
        code_pass(
            kind, step, first_row, row_step, starts, column_step, top, encoding, cells, geometry, predictors, coder,
            data, tables, model, work,
        )  # fmt: skip
    if encoding:
        finish(coder, data)
    return coder[3]
