"""`patch-dct`: a fixed descriptor of how patches of a page look. For scans, and to find pages like a given image.

Nothing is learned, so nothing of what is written is understood: a text query cannot reach these pages. A patch is
described by the low frequencies of its surroundings at three scales (as JPEG has them of blocks), by the directions of
its edges, and by its colour; in all 127 numbers, and one constant that makes all blank patches alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.retrieval.encoders.base import PageVectors, Query, Vectors, normalized
from tokenshard.sources.base import Sample
from tokenshard.spec.documents import EncoderSpec

GRID = 32
DIMENSIONS = 128
VERSION = "patch-dct 1"
_CELL = 8
"""Pixels a patch is drawn with, and samples a side of a transformed block."""
_SCALES = (1, 2, 4)
_FREQUENCIES = 36
"""Of each block, lowest first; the very first (its mean) is compared with the page's."""
_DIRECTIONS = 8
_BLANK = 0.15
"""Weight of the constant, beside contrasts that reach about 1."""


class PatchDct:
    """Descriptors of a page drawn with 32 x 32 patches."""

    def __init__(self) -> None:
        self._spec = EncoderSpec(
            name="patch-dct",
            reads="pixels",
            dimensions=DIMENSIONS,
            grid=(GRID, GRID),
            weights_sha256=hashlib.sha256(VERSION.encode()).hexdigest(),
            weight_licence="Apache-2.0",
        )

    @property
    def spec(self) -> EncoderSpec:
        return self._spec

    def fitted(self, pages: Sequence[Sample]) -> Self:
        return self

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {}

    def with_tensors(self, tensors: dict[str, NDArray[Any]]) -> Self:
        if tensors:
            raise FormatError(f"the encoder patch-dct has no tensors, and here are {', '.join(sorted(tensors))}")
        return self

    def encode_pages(self, pages: Sequence[Sample]) -> list[PageVectors]:
        return [self._page(page) for page in pages]

    def encode_query(self, query: Query) -> Vectors:
        """Descriptors of all patches of an image [1024, 128]."""
        if isinstance(query, str):
            raise SpecError("pages encoded with patch-dct are found by an image, not by text; give an image file")
        return normalized(_descriptors(query))

    def _page(self, page: Sample) -> PageVectors:
        if page.data.ndim != 3 or not page.data.size:
            raise InputError("the page is not drawn; this encoder reads page images (render: true)")
        described = _descriptors(page.data)
        contrast = np.linalg.norm(described[:, 1:], axis=1)
        rows, columns = np.divmod(np.arange(GRID * GRID, dtype=np.int32), GRID)
        saliency = contrast / max(float(contrast.mean()), 1e-12)
        positions = np.stack([rows, columns], 1)
        return PageVectors(normalized(described), positions, (GRID, GRID), saliency.astype(np.float32))


def _descriptors(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 [height, width, 3] -> [1024, 128], patch by patch in rows."""
    side = GRID * _CELL
    drawn = Image.fromarray(image).convert("YCbCr").resize((side, side), Image.Resampling.BOX)
    planes = np.asarray(drawn, np.float64) / 255
    light = planes[:, :, 0]
    parts = [np.full((GRID * GRID, 1), _BLANK)]
    parts += [_frequencies(light, scale) for scale in _SCALES]
    parts += [_edges(light, scale) for scale in _SCALES[:2]]
    parts.append((_means(planes[:, :, 1:]) - 0.5) * 2)
    described = np.concatenate(parts, axis=1)
    spare = np.abs(_gradients(light)).reshape(GRID, _CELL, GRID, _CELL).mean((1, 3)).reshape(-1, 1)
    return np.concatenate([described, spare], axis=1)


def _frequencies(light: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """Low frequencies [1024, 36] of the surroundings of each patch, ``scale`` patches wide and resampled to 8 x 8."""
    blocks = _surroundings(light, scale) - light.mean()
    transformed = np.einsum("ui,nij,vj->nuv", _BASIS, blocks, _BASIS) / _CELL
    return np.asarray(transformed.reshape(len(blocks), -1)[:, _ORDER[:_FREQUENCIES]])


def _surroundings(light: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """Blocks [1024, 8, 8] around the patches; beyond its border a page goes on as it ends."""
    small = light.reshape(GRID * _CELL // scale, scale, GRID * _CELL // scale, scale).mean((1, 3))
    step = _CELL // scale
    margin = (_CELL - step) // 2
    padded = np.pad(small, (margin, _CELL - step - margin), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_CELL, _CELL))[::step, ::step]
    return np.asarray(windows[:GRID, :GRID]).reshape(-1, _CELL, _CELL)


def _gradients(light: NDArray[np.float64]) -> NDArray[np.complex128]:
    down, right = np.gradient(light)
    return np.asarray(right + 1j * down, np.complex128)


def _edges(light: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """How much edge there is in each of 8 directions [1024, 8], by size of the gradient (after Dalal and Triggs)."""
    small = light.reshape(GRID * _CELL // scale, scale, GRID * _CELL // scale, scale).mean((1, 3))
    gradients = _gradients(small)
    turn = np.angle(gradients) % np.pi / np.pi * _DIRECTIONS
    low = np.floor(turn).astype(np.int64) % _DIRECTIONS
    share = turn - np.floor(turn)
    size = np.abs(gradients)
    votes = np.zeros((*small.shape, _DIRECTIONS))
    np.put_along_axis(votes, low[..., None], (size * (1 - share))[..., None], 2)
    np.put_along_axis(votes, (low[..., None] + 1) % _DIRECTIONS, (size * share)[..., None], 2)
    cell = _CELL // scale
    return np.asarray(votes.reshape(GRID, cell, GRID, cell, _DIRECTIONS).mean((1, 3)).reshape(-1, _DIRECTIONS) * 2)


def _means(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(planes.reshape(GRID, _CELL, GRID, _CELL, -1).mean((1, 3)).reshape(GRID * GRID, -1))


def _cosines() -> NDArray[np.float64]:
    """The orthonormal DCT-II of 8 samples, a row a frequency."""
    places = np.arange(_CELL)
    basis = np.cos(np.pi * (2 * places + 1) * places[:, None] / (2 * _CELL)) * np.sqrt(2 / _CELL)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis)


_BASIS = _cosines()
_ORDER = np.array(
    sorted(range(_CELL * _CELL), key=lambda at: (sum(divmod(at, _CELL)), max(divmod(at, _CELL)), at)), np.int64
)
