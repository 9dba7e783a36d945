"""The `grid` tokenizer: patches of a field as mean, gain and shapes, decoded without seams; trained in seconds.

Cells come in steps: a length that says how fine the tokens are, as in any quantizer. A patch is split into its mean, a
whole number of steps; the size (gain) of what the means around it do not tell already, in octaves from a floor on; and
its shape. Shapes are vectors from a codebook (mean-removed shape-gain vector quantization, Gersho and Gray 1992,
ch. 12), with more codebooks for what the first leaves over (residual vector quantization): a patch has as many as its
gain has octaves, so that bits go where the relief is. What decodes is smoothed across patches (see :mod:`.lapped`).

An id depends on the cells of its patch and of the patches next to it alone, and all of encoding and decoding is
arithmetic of whole numbers after one rounding: ids and cells are the same everywhere, however a field is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from tokenshard.errors import FormatError, SpecError
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers import lapped
from tokenshard.tokenizers.grid_codes import MAX_MEANS, Codes, LatticeTokenizer
from tokenshard.tokenizers.grid_fit import MAX_FLOOR, fit_grid, floor_units, ids_of_means, own_step
from tokenshard.tokenizers.grid_split import (
    GAINS,
    REACH,
    SCALE,
    Split,
    projected,
    scales,
    shapes_of,
    split,
)
from tokenshard.tokenizers.nearest import build_tree, nearest
from tokenshard.tokenizers.weights import check_tensors, weights_sha256, weights_to_bytes

MAX_CODES = 1 << 14
MAX_SIDE = 16
MAX_LEVELS = 8


class GridConfig(StoredDocument):
    """`config` of a grid tokenizer in `tokenizer.json`."""

    patch: tuple[int, int] = Field(description="cells of a patch along rows and columns")
    step: float = Field(gt=0, allow_inf_nan=False, description="of means, in the unit of the grid")
    floor: int = Field(ge=1, le=MAX_FLOOR, description="least gain of a patch that has a shape, in 1 / 64 steps")
    components: int = Field(ge=1, le=MAX_SIDE * MAX_SIDE, description="PCA components the search runs in")
    codebooks: int = Field(ge=1, le=MAX_LEVELS, description="codebooks of shapes")


class GridTokenizer(LatticeTokenizer):
    """Ids of a patch: mean, gain, and a shape from each codebook.

    axes: float32 [r, d], orthonormal PCA axes of shapes, d = cells of a patch
    codewords: float32 [L, K, d], in gains
    surface: int32 [8, d], window: int32 [1 + L, cells of a patch and its margin, d], the maps of :mod:`.lapped`
    means: ids of means
    """

    ring = lapped.RING

    def __init__(
        self,
        axes: NDArray[np.float32],
        codewords: NDArray[np.float32],
        surface: NDArray[np.int32],
        window: NDArray[np.int32],
        patch: tuple[int, int],
        step: float,
        floor: int,
        means: int,
    ) -> None:
        self.axes, self.codewords, self.surface, self.window = axes, codewords, surface, window
        self.patch, self.step, self.floor, self.means = patch, step, floor, means
        self.codebooks_of_shapes = len(codewords)
        self._axes = np.rint(axes.astype(np.float64) * SCALE)
        whole = np.rint(codewords.astype(np.float64) * SCALE)
        reach = float(REACH) * np.sqrt(len(axes))
        self._trees = [build_tree(projected(book, self._axes), reach) for book in whole]
        self._books = np.pad(whole, ((0, 0), (1, 0), (0, 0)))  # 0: no shape

    @classmethod
    def fit(
        cls,
        images: Sequence[NDArray[Any]],
        seed: int,
        *,
        patch: Sequence[int] = (8, 8),
        k: int = 256,
        codebooks: int = 2,
        step: float | None = None,
        floor: float | None = None,
    ) -> GridTokenizer:
        """Fit to fields float [height, width] (NaN: no value) of any sizes, in the unit of the grid.

        ``step`` is by default a power of two near an eighth of the relief within patches; patches whose relief is less
        than ``floor``, by default two steps, have no shape. ``k`` is lowered to the number of patches that have one.
        Equal fields, seed and options give equal weights.
        Raises :class:`SpecError` on options out of range.
        """
        height, width = patch
        if not (2 <= height <= MAX_SIDE and 2 <= width <= MAX_SIDE and 1 <= k <= MAX_CODES):
            raise SpecError(f"patch sides must be 2 to {MAX_SIDE} and k 1 to {MAX_CODES}, not {height}x{width}, k={k}")
        if not 1 <= codebooks <= MAX_LEVELS:
            raise SpecError(f"codebooks must be 1 to {MAX_LEVELS}, not {codebooks}")
        for name, value in (("step", step), ("floor", floor)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SpecError(f"{name} must be a positive number in the unit of the grid, not {value}")
        step = step or own_step(images, (height, width))
        units = floor_units(step, floor)
        found = fit_grid(images, seed, (height, width), k, codebooks, step, units)
        means = ids_of_means(found.widest)
        return cls(found.axes, found.codewords, found.surface, found.window, (height, width), step, units, means)

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> GridTokenizer:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        try:
            config = GridConfig.model_validate(spec.config)
        except ValidationError as error:
            first = error.errors()[0]
            raise FormatError(f"config.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        sizes = set(spec.levels[2:])
        means = spec.levels[0]
        if spec.levels[1:2] != (GAINS,) or len(spec.levels) != 2 + config.codebooks or len(sizes) != 1:
            raise FormatError(f"levels {list(spec.levels)} are not those of a grid tokenizer")
        if spec.downsample != config.patch or not all(2 <= side <= MAX_SIDE for side in config.patch):
            raise FormatError(f"downsample {list(spec.downsample)} is not the patch of a grid tokenizer")
        height, width = config.patch
        codes = sizes.pop() - 1
        if not (1 <= codes <= MAX_CODES and 4 <= means <= MAX_MEANS):
            raise FormatError(f"levels {list(spec.levels)} are not those of a grid tokenizer")
        seen = (height + 2 * lapped.MARGIN) * (width + 2 * lapped.MARGIN)
        check_tensors(
            tensors,
            {
                "axes": (np.float32, (config.components, height * width)),
                "codewords": (np.float32, (config.codebooks, codes, height * width)),
                "surface": (np.int32, (8, height * width)),
                "window": (np.int32, (1 + config.codebooks, seen, height * width)),
            },
        )
        for name, most in {
            "axes": 1.5,
            "codewords": REACH / SCALE,
            "surface": lapped.LARGEST,
            "window": lapped.LARGEST,
        }.items():
            if not (np.isfinite(tensors[name]).all() and np.abs(tensors[name].astype(np.float64)).max() <= most):
                raise FormatError(f"tensor {name} has values no grid tokenizer has")
        axes, codewords, surface, window = (tensors[name] for name in ("axes", "codewords", "surface", "window"))
        return cls(axes, codewords, surface, window, config.patch, config.step, config.floor, means)

    @cached_property
    def spec(self) -> TokenizerSpec:
        """Description of this tokenizer, with the hash of its weights."""
        config = GridConfig(
            patch=self.patch,
            step=self.step,
            floor=self.floor,
            components=len(self.axes),
            codebooks=len(self.codewords),
        )
        return TokenizerSpec(
            kind="grid",
            modality="grid",
            levels=(self.means, GAINS, *(self.codewords.shape[1] + 1,) * len(self.codewords)),
            downsample=self.patch,
            config=config.model_dump(mode="json"),
            numerics="integer",
            weights_sha256=weights_sha256(weights_to_bytes(self.tensors())),
        )

    def codes(self, field: NDArray[Any]) -> Codes:
        """The codes of a field float [height, width] in steps; what the last patches lack has no value."""
        parts: Split = split(field, self.patch, self.surface, self.floor)
        shapes = np.zeros((len(self.codewords), *parts.gains.shape), np.int64)
        rest = parts.shapes
        for level, (tree, book) in enumerate(zip(self._trees, self._books, strict=True)):
            used = parts.gains > level
            if not used.any():
                break
            shapes[level][used] = nearest(projected(rest[used], self._axes), tree)[0] + 1
            rest = rest - book[shapes[level]]
        return Codes(parts.there, parts.means, parts.gains, shapes)

    def field(self, codes: Codes) -> NDArray[np.float64]:
        """The cells of a lattice of codes [rows h, columns w] in steps, NaN where a patch has no value."""
        cells = lapped.surfaces(codes.means, codes.there, self.surface)
        shape = np.zeros(cells.shape)
        for book, ids in zip(self._books, codes.shapes, strict=True):
            shape += book[ids]
        cells += np.floor(shape * scales(codes.gains, self.floor)[..., None] / SCALE + 0.5)
        count = shapes_of(codes.gains, len(self.codewords))
        cells = lapped.smoothed(cells, codes.means, codes.there, count, self.window, self.patch)
        cells[~codes.there] = np.nan
        return lapped.joined(cells, self.patch) / lapped.UNIT

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights: `axes`, `codewords` (float32), `surface` and `window` (int32)."""
        return {"axes": self.axes, "codewords": self.codewords, "surface": self.surface, "window": self.window}
