"""Fitting of the `grid` tokenizer: step, maps between patches, axes and codebooks, from fields themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.tokenizers import lapped
from tokenshard.tokenizers.grid_codes import MAX_MEANS
from tokenshard.tokenizers.grid_split import (
    REACH,
    SCALE,
    patch_means,
    projected,
    scales,
    shapes_of,
    split,
    whole_cells,
)
from tokenshard.tokenizers.grid_window import SAMPLE, Decoded, fit_window
from tokenshard.tokenizers.kmeans import integer_kmeans
from tokenshard.tokenizers.nearest import build_tree, leaf_order, nearest

Real = NDArray[np.float64]
COMPONENTS = 24
ITERATIONS = 12
SHAPES_PER_CODE = 128
MAX_FLOOR = 1 << 16


class Fitted(NamedTuple):
    """The weights of a tokenizer."""

    axes: NDArray[np.float32]
    codewords: NDArray[np.float32]
    surface: NDArray[np.int32]
    window: NDArray[np.int32]
    widest: float
    """the largest distance of a patch's mean from that of its field, in steps"""


class _Field(NamedTuple):
    """A field in patches."""

    cells: Real
    valid: NDArray[np.bool_]
    there: NDArray[np.bool_]
    means: Real


def fit_grid(
    images: Sequence[NDArray[Any]], seed: int, patch: tuple[int, int], k: int, codebooks: int, step: float, floor: int
) -> Fitted:
    """Weights for fields in the unit of the grid (NaN: no value). ``floor``: the least gain, in units."""
    images = [np.asarray(image, np.float64) for image in images] or [np.full(patch, np.nan)]
    fields = [_in_patches(image / step, patch) for image in images]
    surface = _fitted_surface(fields, floor, seed)
    parts = [split(image / step, patch, surface, floor) for image in images]
    gains = np.concatenate([part.gains.reshape(-1) for part in parts])
    shapes = np.concatenate([part.shapes.reshape(-1, math.prod(patch)) for part in parts])
    axes, books = _codebooks(shapes[gains > 0], gains[gains > 0], math.prod(patch), k, codebooks, seed)
    whole_axes = np.rint(axes.astype(np.float64) * SCALE)
    decoded = []
    for field, part in zip(fields, parts, strict=True):
        shape = _nearest_shapes(part.shapes, part.gains, books, whole_axes)
        cells = lapped.surfaces(field.means, field.there, surface)
        cells += np.floor(shape * scales(part.gains, floor)[..., None] / SCALE + 0.5)
        decoded.append(Decoded(*field, cells, shapes_of(part.gains, codebooks)))
    window = fit_window(decoded, 1 + codebooks, patch, floor, seed)
    return Fitted(axes, (books / SCALE).astype(np.float32), surface, window, _widest(fields))


def fit_surface(
    images: Sequence[NDArray[Any]], seed: int, patch: tuple[int, int], step: float, floor: int
) -> tuple[NDArray[np.int32], float]:
    """The surface of :mod:`.lapped` for fields in the unit of the grid, and how far means of patches lie apart."""
    fields = [_in_patches(np.asarray(image, np.float64) / step, patch) for image in images]
    return _fitted_surface(fields, floor, seed), _widest(fields)


def floor_units(step: float, floor: float | None) -> int:
    """The least gain in units, of one in the unit of the grid; by default two steps."""
    return max(1, min(round((2.0 if floor is None else floor / step) * lapped.UNIT), MAX_FLOOR))


def ids_of_means(widest: float) -> int:
    """Ids of means for fields in which means lie so many steps apart: with room for others."""
    return min(1 << max(8, math.ceil(math.log2(4 * widest + 2))), MAX_MEANS)


def own_step(images: Sequence[NDArray[Any]], patch: tuple[int, int]) -> float:
    """The power of two next to an eighth of the root mean square of what the means of patches leave."""
    total, count = 0.0, 0
    for image in images:
        middle = np.nanmean(image) if np.isfinite(image).any() else 0.0
        padded = np.full(
            (image.shape[0] + -image.shape[0] % patch[0], image.shape[1] + -image.shape[1] % patch[1]), np.nan
        )
        padded[: image.shape[0], : image.shape[1]] = image - middle
        cut = lapped.patches(padded, patch)
        whole = np.isfinite(cut).all(axis=2)
        rest = cut[whole] - cut[whole].mean(axis=1, keepdims=True)
        total, count = total + float((rest * rest).sum()), count + rest.size
    size = math.sqrt(total / count) / 8 if count else 0.0
    return math.ldexp(1.0, round(math.log2(size))) if 1e-30 < size < 1e30 else 1.0


def _widest(fields: Sequence[_Field]) -> float:
    return max((float(np.ptp(field.means[field.there])) for field in fields if field.there.any()), default=0.0)


def _in_patches(field: NDArray[Any], patch: tuple[int, int]) -> _Field:
    cells, valid = whole_cells(field, patch)
    return _Field(cells, valid, *patch_means(cells, valid))


def _fitted_surface(fields: Sequence[_Field], floor: int, seed: int) -> NDArray[np.int32]:
    inputs, outputs = [], []
    for field in fields:
        whole = field.valid.all(axis=2)
        inputs.append(lapped.differences(field.means, field.there)[whole])
        outputs.append((field.cells - (field.means * lapped.UNIT)[..., None])[whole])
    left, right = np.concatenate(inputs), np.concatenate(outputs)
    if len(left) > SAMPLE:
        chosen = np.sort(np.random.default_rng(seed).choice(len(left), SAMPLE, replace=False))
        left, right = left[chosen], right[chosen]
    return lapped.fitted(left, right, floor / 2, lapped.SURFACE_BITS)


def _codebooks(
    shapes: Real, gains: NDArray[np.int64], cells: int, k: int, codebooks: int, seed: int
) -> tuple[NDArray[np.float32], Real]:
    """PCA axes, and codebooks [codebooks, K, d] in 1 / SCALE: each of those patches that use it."""
    if not len(shapes):
        shapes, gains = np.zeros((1, cells)), np.ones(1, np.int64)
    axes = _principal_axes(shapes, COMPONENTS)
    whole = np.rint(axes.astype(np.float64) * SCALE)
    size = min(k, len(shapes))
    books = np.zeros((codebooks, size, cells))
    draw = np.random.default_rng(seed)
    rest = shapes
    for level in range(codebooks):
        used = np.flatnonzero(gains > level)
        if not len(used):
            break
        if len(used) > SHAPES_PER_CODE * k:
            used = np.sort(draw.choice(used, SHAPES_PER_CODE * k, replace=False))
        points = projected(rest[used], whole)
        centroids = integer_kmeans(points, min(size, len(points)), seed + level, ITERATIONS)
        centroids = centroids[np.concatenate(leaf_order(centroids))]
        ids, _ = nearest(points, build_tree(centroids, float(REACH) * math.sqrt(len(axes))))
        books[level, : len(centroids)] = np.rint(_mean_shapes(rest[used], ids, len(centroids)))
        if level + 1 < codebooks:
            rest = rest - _nearest_shapes(rest, gains - level, books[level : level + 1], whole)
    return axes, books


def _nearest_shapes(shapes: Real, gains: NDArray[np.int64], books: Real, axes: Real) -> Real:
    """What the codebooks make of shapes [..., d]: each is used where the gain is above its number."""
    found = np.zeros(shapes.shape)
    reach = float(REACH) * math.sqrt(len(axes))
    for level, book in enumerate(books):
        used = gains > level
        if used.any():
            ids = nearest(projected((shapes - found)[used], axes), build_tree(projected(book, axes), reach))[0]
            found[used] += book[ids]
    return found


def _principal_axes(shapes: Real, rank: int) -> NDArray[np.float32]:
    """The leading eigenvectors [at most rank, d] of the second moments of shapes, those that have any."""
    gram = shapes.T @ shapes / len(shapes)
    powers, vectors = np.linalg.eigh(gram)
    rank = max(1, min(rank, int((powers > 1e-4 * max(powers[-1], 1)).sum())))
    axes = vectors[:, ::-1][:, :rank].T
    signed = axes * np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)
    return np.asarray(signed, np.float32)


def _mean_shapes(shapes: Real, ids: NDArray[np.int32], k: int) -> Real:
    """The mean of the shapes of each id [k, d]; zero where there are none."""
    counts = np.bincount(ids, minlength=k)
    sums = np.stack([np.bincount(ids, weights=column, minlength=k) for column in shapes.T], axis=1)
    return np.asarray(sums / np.maximum(counts, 1)[:, None])
