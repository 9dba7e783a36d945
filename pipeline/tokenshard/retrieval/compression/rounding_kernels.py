"""Compiled loops that choose points on a grid for rotated vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenshard.retrieval.compression.kernels import kernel


@kernel
def adjusted_codes(vectors: Any, bits: Any, rounds: Any, points: Any, factors: Any) -> None:
    """Code adjustment (SAQ, arXiv:2509.12086): round to 2^bits levels of [-max, max], then move single coordinates by a
    level as long as that brings the point nearer in angle.

    ``points`` [N, e]: levels 0 to 2^bits - 1, which stand for the odd numbers 1 - 2^bits to 2^bits - 1; ``factors``
    [N]: what makes the point's inner product with the vector that of the vector with itself.
    """
    top = (1 << bits) - 1
    for row in range(vectors.shape[0]):
        most = np.abs(vectors[row]).max()
        if most == 0:
            points[row], factors[row] = 0, 0
            continue
        dot, size, own = 0.0, 0.0, 0.0
        for j in range(vectors.shape[1]):
            value = np.float64(vectors[row, j])
            level = min(max(np.int64(np.floor((value / most + 1) * (top + 1) / 2)), 0), top)
            points[row, j] = level
            dot += value * (2 * level - top)
            size += (2.0 * level - top) ** 2
            own += value * value
        for _ in range(rounds):
            moved = False
            for j in range(vectors.shape[1]):
                value, level = np.float64(vectors[row, j]), np.int64(points[row, j])
                for move in (-1, 1):
                    if 0 <= level + move <= top:
                        new_dot = dot + 2 * move * value
                        new_size = size + 4 * move * (2 * level - top) + 4
                        if new_dot > 0 and new_dot * new_dot * size > dot * dot * new_size:
                            level += move
                            dot, size, moved = new_dot, new_size, True
                points[row, j] = level
            if not moved:
                break
        factors[row] = own / dot


@kernel
def scaled_codes(vectors: Any, bits: Any, scales: Any, points: Any, factors: Any) -> None:
    """Extended RaBitQ (arXiv:2409.09913): of the roundings at some scales, the one nearest in angle.

    As :func:`adjusted_codes`, with ``scales``: multiples of the vector's largest entry that the outermost level is.
    """
    top = (1 << bits) - 1
    for row in range(vectors.shape[0]):
        most = np.abs(vectors[row]).max()
        if most == 0:
            points[row], factors[row] = 0, 0
            continue
        best, chosen = -1.0, scales[0]
        for scale in scales:
            dot, size = 0.0, 0.0
            for j in range(vectors.shape[1]):
                value = np.float64(vectors[row, j])
                level = min(max(np.int64(np.floor((value / (most * scale) + 1) * (top + 1) / 2)), 0), top)
                dot += value * (2 * level - top)
                size += (2.0 * level - top) ** 2
            if dot / np.sqrt(size) > best:
                best, chosen = dot / np.sqrt(size), scale
        dot, own = 0.0, 0.0
        for j in range(vectors.shape[1]):
            value = np.float64(vectors[row, j])
            level = min(max(np.int64(np.floor((value / (most * chosen) + 1) * (top + 1) / 2)), 0), top)
            points[row, j] = level
            dot += value * (2 * level - top)
            own += value * value
        factors[row] = own / dot


@kernel
def pyramid_points(vectors: Any, total: Any, out: Any) -> None:
    """Pyramid vector quantization (Fischer 1986): integers that add up to ``total`` in size, near a direction.

    The entries scaled to that sum are rounded down, and what is missing goes where the most was lost. ``out``: int16.
    """
    for row in range(vectors.shape[0]):
        size = np.abs(vectors[row].astype(np.float64)).sum()
        out[row] = 0
        if size == 0:
            continue
        missing: Any = total
        lost = np.empty(vectors.shape[1])
        for j in range(vectors.shape[1]):
            wanted = abs(np.float64(vectors[row, j])) / size * total
            whole: Any = np.int64(np.floor(wanted))
            lost[j] = wanted - whole
            missing -= whole
            out[row, j] = whole
        while missing > 0:
            most = lost.argmax()
            out[row, most] += 1
            lost[most] -= 1
            missing -= 1
        for j in range(vectors.shape[1]):
            if vectors[row, j] < 0:
                out[row, j] = -out[row, j]
