"""The `grid` tokenizer: patches of a field as mean, gain and shape; trained on the input itself in seconds.

Cells come normalised by tile, without their mean and divided by a gain. A patch is split into the mean of its valid
cells, the size of what is left (gain), and its shape: what is left, divided by the gain. Mean and gain are uniform
scales, linear and in half octaves; shapes are vectors from a codebook (mean-removed shape-gain vector quantization,
Gersho and Gray 1992, ch. 12), with more codebooks for what the first leaves over (residual vector quantization). A
patch without a valid cell has a code of its own. All of encoding is arithmetic of whole numbers after one rounding, so
ids are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.kmeans import integer_kmeans
from tokenshard.tokenizers.nearest import build_tree, leaf_order, nearest
from tokenshard.tokenizers.weights import check_tensors, weights_sha256, weights_to_bytes

MEANS = 1024
"""Ids of means. 0: no valid cell; others are a grid of steps of 1/64, up to 8 standard deviations to both sides."""
MEAN_STEP = 1 / 64
GAINS = 40
"""Ids of gains. 0: flat; others are half octaves up to that of a patch with a root mean square of 4."""
LARGEST_GAIN = 2
"""Its binary logarithm."""
UNIT = 1 << 16
"""Normalised cells are rounded to multiples of 1 / UNIT."""
SCALE = 1 << 9
"""Shapes have a root mean square of about SCALE."""
REACH = 1 << 14
"""Cells of a shape are clipped to this; so are the projections of vectors."""
MAX_CODES = 1 << 14
MAX_SIDE = 16
MAX_LEVELS = 8
COMPONENTS = 24
ITERATIONS = 12
SHAPES_PER_CODE = 128


class GridConfig(StoredDocument):
    """`config` of a grid tokenizer in `tokenizer.json`."""

    patch: tuple[int, int] = Field(description="cells of a patch along rows and columns")
    components: int = Field(ge=1, le=MAX_SIDE * MAX_SIDE, description="PCA components the search runs in")
    codebooks: int = Field(ge=1, le=MAX_LEVELS, description="codebooks of shapes")


class GridTokenizer:
    """Ids of a patch: mean, gain, and a shape from each codebook.

    axes: float32 [r, d], orthonormal PCA axes of shapes, d = cells of a patch
    codewords: float32 [L, K, d], shapes with a root mean square of about 1
    """

    def __init__(self, axes: NDArray[np.float32], codewords: NDArray[np.float32], patch: tuple[int, int]) -> None:
        self.axes, self.codewords, self.patch = axes, codewords, patch
        self._axes = np.rint(axes.astype(np.float64) * SCALE)
        centroids = [_project(np.rint(book.astype(np.float64) * SCALE), self._axes) for book in codewords]
        reach = float(REACH) * np.sqrt(len(axes))
        self._trees = [build_tree(book, reach) for book in centroids]
        self._codewords = np.rint(codewords.astype(np.float64) * SCALE).astype(np.int32)

    @classmethod
    def fit(
        cls,
        images: Sequence[NDArray[Any]],
        seed: int,
        *,
        patch: Sequence[int] = (8, 8),
        k: int = 512,
        codebooks: int = 1,
    ) -> GridTokenizer:
        """Fit to the shapes of normalised fields float [height, width] (NaN: no value) of any sizes.

        ``k`` is lowered to the number of patches that have a shape. Equal fields, seed and options give equal weights.
        Raises :class:`SpecError` on options out of range.
        """
        height, width = patch
        if not (2 <= height <= MAX_SIDE and 2 <= width <= MAX_SIDE and 1 <= k <= MAX_CODES):
            raise SpecError(f"patch sides must be 2 to {MAX_SIDE} and k 1 to {MAX_CODES}, not {height}x{width}, k={k}")
        if not 1 <= codebooks <= MAX_LEVELS:
            raise SpecError(f"codebooks must be 1 to {MAX_LEVELS}, not {codebooks}")
        parts = [_split(_patches(field, (height, width))) for field in images]
        shapes = np.concatenate([part.shapes[part.gains > 0] for part in parts]) if parts else np.zeros((0, 1))
        if not len(shapes):
            shapes = np.zeros((1, height * width))
        limit = SHAPES_PER_CODE * k
        if len(shapes) > limit:
            shapes = shapes[np.sort(np.random.default_rng(seed).choice(len(shapes), limit, replace=False))]
        axes = _principal_axes(shapes, COMPONENTS)
        books, rest = [], shapes
        for number in range(codebooks):
            points = _project(rest, np.rint(axes * SCALE))
            centroids = integer_kmeans(points, min(k, len(points)), seed + number, ITERATIONS)
            centroids = centroids[np.concatenate(leaf_order(centroids))]
            reach = float(REACH) * np.sqrt(len(axes))
            ids, _ = nearest(points, build_tree(centroids, reach))
            book = _mean_shapes(rest, ids, len(centroids)) / SCALE
            books.append(np.pad(book, ((0, min(k, len(shapes)) - len(book)), (0, 0))))
            rest = rest - np.rint(book * SCALE)[ids]
        return cls(axes.astype(np.float32), np.stack(books).astype(np.float32), (height, width))

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> GridTokenizer:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        try:
            config = GridConfig.model_validate(spec.config)
        except ValidationError as error:
            first = error.errors()[0]
            raise FormatError(f"config.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        sizes = set(spec.levels[2:])
        if spec.levels[:2] != (MEANS, GAINS) or len(spec.levels) != 2 + config.codebooks or len(sizes) != 1:
            raise FormatError(f"levels {list(spec.levels)} are not those of a grid tokenizer")
        if spec.downsample != config.patch or not all(2 <= side <= MAX_SIDE for side in config.patch):
            raise FormatError(f"downsample {list(spec.downsample)} is not the patch of a grid tokenizer")
        cells, codes = config.patch[0] * config.patch[1], sizes.pop()
        check_tensors(
            tensors,
            {
                "axes": (np.float32, (config.components, cells)),
                "codewords": (np.float32, (config.codebooks, codes, cells)),
            },
        )
        for name, tensor in tensors.items():
            if not (np.isfinite(tensor).all() and np.abs(tensor).max() <= REACH / SCALE):
                raise FormatError(f"tensor {name} has values no grid tokenizer has")
        return cls(tensors["axes"], tensors["codewords"], config.patch)

    @cached_property
    def spec(self) -> TokenizerSpec:
        """Description of this tokenizer, with the hash of its weights."""
        config = GridConfig(patch=self.patch, components=len(self.axes), codebooks=len(self.codewords))
        return TokenizerSpec(
            kind="grid",
            modality="grid",
            levels=(MEANS, GAINS, *(self.codewords.shape[1],) * len(self.codewords)),
            downsample=self.patch,
            config=config.model_dump(mode="json"),
            numerics="integer",
            weights_sha256=weights_sha256(weights_to_bytes(self.tensors())),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a field of that size."""
        return -(-height // self.patch[0]), -(-width // self.patch[1])

    def encode(self, images: NDArray[Any]) -> NDArray[np.uint16]:
        """Normalised fields float [B, height, width] (NaN: no value) -> uint16 [B, 2 + codebooks, rows, columns].

        Raises :class:`InputError` on other arrays.
        """
        if images.ndim != 3 or images.dtype.kind != "f" or 0 in images.shape[1:]:
            raise InputError(f"expected fields float [batch, height, width], not {images.dtype} {list(images.shape)}")
        rows, columns = self.grid(*images.shape[1:])
        out = np.empty((len(images), 2 + len(self.codewords), rows, columns), np.uint16)
        for field, ids in zip(images, out, strict=True):
            parts = _split(_patches(field, self.patch))
            ids[0], ids[1] = parts.means.reshape(rows, columns), parts.gains.reshape(rows, columns)
            shaped, rest = parts.gains > 0, parts.shapes
            for level, (tree, book) in enumerate(zip(self._trees, self._codewords, strict=True)):
                found = np.zeros(len(rest), np.int32)
                found[shaped] = nearest(_project(rest[shaped], self._axes), tree)[0] if shaped.any() else 0
                ids[2 + level] = found.reshape(rows, columns)
                rest = rest - book[found]
        return out

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Ids [B, 2 + codebooks, rows, columns] -> float32 [B, height, width], NaN where a patch has no valid cell.

        Raises :class:`FormatError` on ids out of range or a size the grid cannot have come from.
        """
        batch, levels, rows, columns = codes.shape
        limits = np.array(self.spec.levels)[:, None, None]
        if levels != len(limits) or (codes.size and not ((codes >= 0) & (codes < limits)).all()):
            raise FormatError(f"ids of {levels} levels do not fit a grid tokenizer of {list(self.spec.levels)}")
        height, width = size or (rows * self.patch[0], columns * self.patch[1])
        if self.grid(height, width) != (rows, columns):
            raise FormatError(f"a {rows}x{columns} grid of {self.patch} patches is not {height}x{width} cells")
        shapes = np.zeros((batch, rows, columns, self.codewords.shape[2]), np.float32)
        for level, book in enumerate(self.codewords):
            shapes += book[codes[:, 2 + level]]
        means = (codes[:, 0].astype(np.float32) - MEANS // 2) * np.float32(MEAN_STEP)
        means[codes[:, 0] == 0] = np.nan
        gains = np.where(codes[:, 1] > 0, _gain_table()[codes[:, 1]], 0).astype(np.float32)
        cells = means[..., None] + gains[..., None] * shapes
        cells = cells.reshape(batch, rows, columns, *self.patch).swapaxes(2, 3)
        return cells.reshape(batch, rows * self.patch[0], columns * self.patch[1])[:, :height, :width]

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights: `axes` and `codewords` (float32)."""
        return {"axes": self.axes, "codewords": self.codewords}


class _Parts:
    """Patches split into ids of mean and gain, and shapes times SCALE (whole numbers, as float64)."""

    def __init__(self, means: NDArray[np.int64], gains: NDArray[np.int64], shapes: NDArray[np.float64]) -> None:
        self.means, self.gains, self.shapes = means, gains, shapes


def _gain_table() -> NDArray[np.float64]:
    """[GAINS]: the gain of each id; that of id 0 is not used."""
    halves = np.arange(GAINS) - (GAINS - 1) + 2 * LARGEST_GAIN
    whole = np.ldexp(1.0, halves // 2)
    table: NDArray[np.float64] = np.where(halves % 2, whole * 2**0.5, whole)
    return table


def _split(cells: NDArray[np.float64]) -> _Parts:
    """Patches [N, d] (NaN: no value) -> their parts."""
    valid = ~np.isnan(cells)
    limit = MEANS * MEAN_STEP
    whole = np.rint(np.where(valid, np.clip(cells, -limit, limit), 0) * UNIT)
    counts = valid.sum(axis=1)
    means = whole.sum(axis=1) / np.maximum(counts, 1)  # sums of whole numbers are exact in any order
    ids = np.clip(np.rint(means / (UNIT * MEAN_STEP)) + MEANS // 2, 1, MEANS - 1)
    ids = np.where(counts > 0, ids, 0).astype(np.int64)
    # what a decoder adds back is the mean that was written down
    rest = np.where(valid, whole - ((ids - MEANS // 2) * (UNIT * MEAN_STEP))[:, None], 0)
    power = (rest * rest).sum(axis=1) / np.maximum(counts, 1) / (UNIT * UNIT)
    table = _gain_table()
    gains = np.searchsorted((table[1:] * table[1:]) / 2**0.5, power, side="right")  # the middle of each half octave
    gains = np.where(counts > 0, gains, 0)
    shapes = np.rint(rest * (SCALE / UNIT) / table[np.maximum(gains, 1)][:, None])
    return _Parts(ids, gains, np.clip(shapes, -REACH, REACH))


def _patches(field: NDArray[Any], patch: tuple[int, int]) -> NDArray[np.float64]:
    """The patches [N, d] of a field, row by row; what the last ones lack has no value."""
    height, width = field.shape
    padded = np.pad(field.astype(np.float64), ((0, -height % patch[0]), (0, -width % patch[1])), constant_values=np.nan)
    grid = padded.reshape(padded.shape[0] // patch[0], patch[0], padded.shape[1] // patch[1], patch[1])
    return grid.swapaxes(1, 2).reshape(-1, patch[0] * patch[1])


def _project(shapes: NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.int16]:
    """Shapes times SCALE [N, d] along axes times SCALE [r, d], in units of the shapes: whole numbers, exactly."""
    sums = shapes @ axes.T  # whole numbers below 2⁵³
    return np.clip(np.floor(sums / SCALE + 0.5), -REACH, REACH).astype(np.int16)


def _principal_axes(shapes: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """The leading eigenvectors [at most rank, d] of the second moments of shapes, those that have any."""
    gram = shapes.T @ shapes / len(shapes)
    powers, vectors = np.linalg.eigh(gram)
    rank = max(1, min(rank, int((powers > 1e-4 * max(powers[-1], 1)).sum())))
    axes = vectors[:, ::-1][:, :rank].T
    signed: NDArray[np.float64] = axes * np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)
    return np.asarray(signed, np.float32).astype(np.float64)


def _mean_shapes(shapes: NDArray[np.float64], ids: NDArray[np.int32], k: int) -> NDArray[np.float64]:
    """The mean of the shapes of each id [k, d]; zero where there are none."""
    counts = np.bincount(ids, minlength=k)
    sums = np.stack([np.bincount(ids, weights=column, minlength=k) for column in shapes.T], axis=1)
    return np.asarray(sums / np.maximum(counts, 1)[:, None])
