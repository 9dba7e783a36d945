"""Patches on a lattice and linear maps between neighbours, in whole numbers: what the `grid` tokenizer is made of.

A patch is first the surface that its own mean and those of its eight neighbours suggest; a second map, from the cells
of the patch and two around it, takes back what the borders of patches show. There is one for each number of shapes that
a patch can have: the fewer they are, the more its neighbours tell. All numbers are integers in float64, so sums are
exact in any order and a cell decodes alike on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]
UNIT = 64
"""Cells are whole multiples of a step / UNIT."""
MARGIN = 2
"""Cells around a patch that the second map sees."""
RING = 2
"""Patches around a tile on which its cells depend: the second map sees cells of the first ring, these the means of the
second."""
SURFACE_BITS, WINDOW_BITS = 8, 12
"""Fractional bits of the weights of the two maps."""
LARGEST = 1 << 20
"""The largest weight."""
_RIDGE = 1e-4
_AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def patches(cells: Real, patch: tuple[int, int]) -> Real:
    """Cells [rows h, columns w] as patches [rows, columns, h w]."""
    rows, columns = cells.shape[0] // patch[0], cells.shape[1] // patch[1]
    grid = cells.reshape(rows, patch[0], columns, patch[1]).swapaxes(1, 2)
    return grid.reshape(rows, columns, patch[0] * patch[1])


def joined(cut: Real, patch: tuple[int, int]) -> Real:
    """The inverse of :func:`patches`."""
    rows, columns = cut.shape[:2]
    return cut.reshape(rows, columns, *patch).swapaxes(1, 2).reshape(rows * patch[0], columns * patch[1])


def differences(means: Real, there: NDArray[np.bool_]) -> Real:
    """Means of the eight neighbours less the own one [rows, columns, 8]; 0 where one of the two is not there."""
    rows, columns = means.shape
    level, mask = np.pad(means, 1), np.pad(there, 1)
    found = np.zeros((rows, columns, len(_AROUND)))
    for place, (dy, dx) in enumerate(_AROUND):
        part = (slice(1 + dy, 1 + dy + rows), slice(1 + dx, 1 + dx + columns))
        found[..., place] = np.where(mask[part] & there, level[part] - means, 0)
    return found


def surfaces(means: Real, there: NDArray[np.bool_], weights: NDArray[np.int32]) -> Real:
    """What the means (in steps) say of the cells of each patch [rows, columns, d], in 1 / UNIT steps."""
    bend = _rounded(differences(means, there) @ weights.astype(np.float64), SURFACE_BITS)
    return means[..., None] * UNIT + bend


def windows(cells: Real, there: NDArray[np.bool_], patch: tuple[int, int]) -> Real:
    """Cells [rows, columns, h w] of each patch and MARGIN around it [rows, columns, (h + 2 MARGIN) (w + 2 MARGIN)].

    Where a neighbour is not there, the nearest cell of the patch itself stands in.
    """
    rows, columns = cells.shape[:2]
    height, width = patch[0] + 2 * MARGIN, patch[1] + 2 * MARGIN
    whole = np.pad(joined(cells, patch), MARGIN)
    shape, steps = (rows, columns, height, width), (whole.strides[0] * patch[0], whole.strides[1] * patch[1])
    seen = np.lib.stride_tricks.as_strided(whole, shape, (*steps, *whole.strides)).copy()
    mask = np.pad(there, 1)
    own = cells.reshape(rows, columns, *patch)
    spans = {-1: slice(0, MARGIN), 0: slice(MARGIN, -MARGIN), 1: slice(-MARGIN, None)}
    nearest = [
        np.clip(np.arange(size) - MARGIN, 0, side - 1) for size, side in zip((height, width), patch, strict=True)
    ]
    for dy, dx in _AROUND:
        gone = ~mask[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
        if gone.any():
            part = (spans[dy], spans[dx])
            seen[(gone, *part)] = own[gone][:, nearest[0][part[0]]][:, :, nearest[1][part[1]]]
    return seen.reshape(rows, columns, height * width)


def smoothed(
    cells: Real,
    means: Real,
    there: NDArray[np.bool_],
    shapes: NDArray[np.int64],
    weights: NDArray[np.int32],
    patch: tuple[int, int],
) -> Real:
    """Cells [rows, columns, d] with what the second maps [1 + codebooks, f, d] add; shapes: how many a patch has."""
    seen = windows(cells, there, patch)
    seen -= (means * UNIT)[..., None]
    found = cells.copy()
    for count, one in enumerate(weights):
        chosen = np.nonzero(there & (shapes == count))
        found[chosen] += _rounded(seen[chosen] @ one.astype(np.float64), WINDOW_BITS)
    return found


def fitted(inputs: Real, outputs: Real, noise: float, bits: int) -> NDArray[np.int32]:
    """Weights [f, d], times 2 ** bits, of the linear map from inputs [n, f] to outputs [n, d].

    Least squares in which a patch counts in inverse proportion to its mean size (at least ``noise``), so that rough
    ones do not decide alone.
    """
    weight = 1 / np.maximum(np.abs(outputs).mean(axis=1, keepdims=True), noise)
    gram = (inputs * weight).T @ inputs
    return stored(solved(gram, (inputs * weight).T @ outputs), bits)


def solved(gram: Real, products: Real) -> Real:
    """The weights [f, d] of least squares, from the products of inputs with inputs [f, f] and with outputs [f, d]."""
    ridge = _RIDGE * np.trace(gram) / len(gram) + 1e-9
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), products), np.float64)


def stored(weights: Real, bits: int) -> NDArray[np.int32]:
    """Weights times 2 ** bits, in whole numbers."""
    whole: NDArray[np.int32] = np.clip(np.rint(weights * (1 << bits)), -LARGEST, LARGEST).astype(np.int32)
    return whole


def _rounded(sums: Real, bits: int) -> Real:
    """Whole numbers divided by 2 ** bits and rounded half up, in place."""
    sums += 1 << (bits - 1)
    sums *= 2.0**-bits
    return np.floor(sums, out=sums)
