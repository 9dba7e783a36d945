"""Widths of the uncertainty layer: one byte for each block of 8 × 8 cells.

Where the encoder has the truth it stores the block's own error quantile, rounded up: coverage then holds in every
block, without any assumption. Widths are powers of two in quarter octaves of the grid's unit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.grids.bounded import decode_tile, encode_tile

BLOCK = 8
_QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
WIDTHS: NDArray[np.float64] = np.array(
    [0.0, *(math.ldexp(_QUARTERS[code % 4], code // 4 - 32) for code in range(1, 255)), math.inf]
)
"""``[256]``: half-width of each byte, ascending: 0, then 2 ** (byte / 4 - 32) up to 1.4e9, last without a limit."""


def blocks(grid: NDArray[Any], fill: Any) -> NDArray[Any]:
    """``[h, w]`` as ``[rows, columns, 64]``; blocks at the end are filled up with ``fill``."""
    height, width = (-(-size // BLOCK) * BLOCK for size in grid.shape)
    whole = np.full((height, width), fill, grid.dtype)
    whole[: grid.shape[0], : grid.shape[1]] = grid
    cut = whole.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).swapaxes(1, 2)
    return cut.reshape(height // BLOCK, width // BLOCK, BLOCK * BLOCK)


def exact_widths(error: NDArray[Any], valid: NDArray[np.bool_], coverage: float = 0.9) -> NDArray[np.uint8]:
    """Bytes ``[ceil(h / 8), ceil(w / 8)]`` of the least widths that cover at least ``coverage`` (1: all) of each block.

    ``error``: what decoding without the bounded layer leaves, ``[h, w]``. Blocks without a valid cell get 0.
    """
    size = np.abs(np.where(valid, error, 0)).astype(np.float64)
    ordered = np.sort(np.where(blocks(valid, False), blocks(size, 0.0), -1.0), axis=2)
    count = blocks(valid, False).sum(2)
    # The largest of the valid ones stands last: the k-th smallest of n is n - k places before it.
    rank = np.ceil(coverage * count - 1e-9).astype(np.int64)
    place = np.clip(BLOCK * BLOCK - 1 - (count - rank), 0, BLOCK * BLOCK - 1)
    quantile = np.take_along_axis(ordered, place[:, :, None], axis=2)[:, :, 0]
    codes: NDArray[np.uint8] = np.searchsorted(WIDTHS, np.maximum(quantile, 0)).astype(np.uint8)
    return codes


def cell_widths(codes: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float64]:
    """The half-width of every cell of a tile of ``shape``."""
    spread = np.repeat(np.repeat(WIDTHS[codes], BLOCK, 0), BLOCK, 1)
    return spread[: shape[0], : shape[1]]


def encode_widths(codes: NDArray[np.uint8]) -> bytes:
    """The bytes that a shard stores for the widths of a tile."""
    return encode_tile(codes, "lossless").stream


def decode_widths(stream: bytes, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The widths of a tile of ``shape`` cells. FormatError where they are damaged or of another tile."""
    codes, _ = decode_tile(stream, (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)))
    if codes.dtype != np.uint8:
        raise FormatError(f"the widths of a tile are of dtype {codes.dtype}, not uint8: restore the shard from a copy")
    return codes
