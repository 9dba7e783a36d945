"""What all tokenizers of grids share: ids of a lattice of patches, each a mean, a gain and shapes.

Patches of all tiles are on one lattice, and what decodes depends on ``ring`` patches around a tile. Cells are in steps,
means in whole steps; an id of a mean is counted from the mean of its tile, an id of a shape is 0 where there is none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.grid_split import GAINS

MAX_MEANS = 1 << 16


@dataclass(frozen=True)
class Codes:
    """What ids stand for, on a lattice of patches."""

    there: NDArray[np.bool_]
    """[rows, columns]: patches that have a value"""
    means: NDArray[np.float64]
    """[rows, columns], whole numbers of steps, of any size"""
    gains: NDArray[np.int64]
    """[rows, columns]"""
    shapes: NDArray[np.int64]
    """[codebooks, rows, columns]; 0: none"""

    def part(self, place: tuple[slice, slice]) -> Codes:
        """Those of a part of the lattice."""
        return Codes(self.there[place], self.means[place], self.gains[place], self.shapes[(slice(None), *place)])

    def surrounded(self, ring: int) -> Codes:
        """With so many patches around that are not there."""
        shapes = np.pad(self.shapes, ((0, 0), (ring, ring), (ring, ring)))
        return Codes(np.pad(self.there, ring), np.pad(self.means, ring), np.pad(self.gains, ring), shapes)


class LatticeTokenizer(ABC):
    """A tokenizer of grids: fields float [height, width] in steps (NaN: no value) ⇄ :class:`Codes` ⇄ ids."""

    patch: tuple[int, int]
    """cells along rows and columns"""
    step: float
    """of means, in the unit of the grid"""
    floor: int
    """least gain of a patch that has a shape, in 1 / 64 steps"""
    means: int
    """ids of means"""
    ring: int
    """patches around a tile on which its cells depend"""
    codebooks_of_shapes: int
    levels_of_numbers = (0, 1)
    """means and gains: ids whose order means something"""

    @property
    @abstractmethod
    def spec(self) -> TokenizerSpec:
        """Description of this tokenizer, with the hash of its weights."""

    @abstractmethod
    def codes(self, field: NDArray[Any]) -> Codes:
        """The codes of a field float [height, width] in steps; what the last patches lack has no value."""

    @abstractmethod
    def field(self, codes: Codes) -> NDArray[np.float64]:
        """The cells of a lattice of codes [rows h, columns w] in steps, NaN where a patch has no value."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights by name, as stored."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a field of that size."""
        return -(-height // self.patch[0]), -(-width // self.patch[1])

    def encode(self, images: NDArray[Any]) -> NDArray[np.uint16]:
        """Fields float [B, height, width] in steps (NaN: no value) -> uint16 [B, 2 + codebooks, rows, columns].

        Raises :class:`InputError` on other arrays.
        """
        if images.ndim != 3 or images.dtype.kind != "f" or 0 in images.shape[1:]:
            raise InputError(f"expected fields float [batch, height, width], not {images.dtype} {list(images.shape)}")
        return np.stack([self.ids(self.codes(field)) for field in images])

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Ids [B, 2 + codebooks, rows, columns] -> float64 [B, height, width] in steps, NaN where a patch has no value.

        As if nothing lay around each field. Raises :class:`FormatError` on ids out of range or a size the grid cannot
        have come from.
        """
        height, width = size or (codes.shape[2] * self.patch[0], codes.shape[3] * self.patch[1])
        if self.grid(height, width) != codes.shape[2:]:
            raise FormatError(f"a grid of {codes.shape[2:]} patches of {self.patch} is not {height}x{width} cells")
        return np.stack([self.field(self.codes_of(ids))[:height, :width] for ids in codes])

    def ids(self, codes: Codes) -> NDArray[np.uint16]:
        """Codes as ids [2 + codebooks, rows, columns]. Means out of reach become the last ones within."""
        means = np.where(codes.there, np.clip(codes.means + self.means // 2, 1, self.means - 1), 0)
        return np.concatenate([means[None], codes.gains[None], codes.shapes]).astype(np.uint16)

    def codes_of(self, ids: NDArray[Any]) -> Codes:
        """The inverse of :meth:`ids`. Raises :class:`FormatError` on ids out of range."""
        limits = np.array(self.spec.levels)[:, None, None]
        if len(ids) != len(limits) or (ids.size and not ((ids >= 0) & (ids < limits)).all()):
            raise FormatError(f"ids of {len(ids)} levels do not fit a grid tokenizer of {list(self.spec.levels)}")
        whole = ids.astype(np.int64)
        there = whole[0] > 0
        return Codes(there, np.where(there, whole[0] - self.means // 2, 0).astype(np.float64), whole[1], whole[2:])

    def cells_within(self, codes: Codes, size: tuple[int, int]) -> NDArray[np.float64]:
        """The cells of a tile [height, width] in steps, from its codes and those of ``ring`` patches around it."""
        top, left = (self.ring * side for side in self.patch)
        return self.field(codes)[top : top + size[0], left : left + size[1]]


def shape_sizes(levels: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    """Ids of means, and codes of each codebook of shapes, of the levels of a description; None: of no lattice."""
    if len(levels) < 3 or levels[1] != GAINS or not 4 <= levels[0] <= MAX_MEANS or min(levels[2:]) < 2:
        return None
    return levels[0], tuple(size - 1 for size in levels[2:])
