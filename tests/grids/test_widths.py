"""Exact widths cover what they say in every block, for a few hundredths of a bit a cell."""

from __future__ import annotations

import numpy as np
import pytest

from tokenshard.errors import FormatError
from tokenshard.grids.bounded import encode_tile
from tokenshard.grids.widths import BLOCK, WIDTHS, blocks, cell_widths, decode_widths, encode_widths, exact_widths


def rough_error(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Errors whose spread changes a hundredfold over the tile."""
    rng = np.random.default_rng(seed)
    spread = np.exp(np.linspace(0, 4.6, shape[1]))[None] * (1 + np.sin(np.arange(shape[0]) / 9))[:, None]
    return rng.standard_t(3, shape) * spread


@pytest.mark.parametrize("shape", [(64, 64), (61, 75), (3, 200), (1, 1)])
@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
def test_every_block_is_covered_even_where_it_is_cut_or_has_holes(shape: tuple[int, int], wanted: float) -> None:
    error = rough_error(shape)
    valid = np.random.default_rng(1).random(shape) < 0.7
    codes = exact_widths(np.where(valid, error, np.nan), valid, wanted)
    inside = np.abs(error) <= cell_widths(codes, shape)
    count = blocks(valid, False).sum(2)
    share = (blocks(inside & valid, False).sum(2) / np.maximum(count, 1))[count > 0]
    assert (share >= wanted).all()
    assert (codes[count == 0] == 0).all()


def test_widths_are_the_least_that_cover() -> None:
    error = rough_error((64, 64))
    codes = exact_widths(error, np.ones(error.shape, bool), 0.9)
    tighter = np.abs(error) <= cell_widths(np.maximum(codes, 1) - 1, error.shape).astype(float)
    assert (blocks(tighter, False).mean(2) < 0.9).all()


def test_bytes_are_quarter_octaves() -> None:
    assert (WIDTHS[0], WIDTHS[128], WIDTHS[132], WIDTHS[124]) == (0, 1, 2, 0.5)
    assert np.allclose(WIDTHS[2:255] / WIDTHS[1:254], 2**0.25)
    codes = exact_widths(np.array([[0.0]]), np.ones((1, 1), bool))
    assert codes.tolist() == [[0]]


def test_widths_come_back_and_those_of_another_tile_are_refused() -> None:
    codes = exact_widths(rough_error((200, 256)), np.ones((200, 256), bool))
    stream = encode_widths(codes)
    assert (decode_widths(stream, (200, 256)) == codes).all()
    assert 8 * len(stream) / (200 * 256) < 8 / BLOCK**2
    with pytest.raises(FormatError, match="shape"):
        decode_widths(stream, (200, 265))
    with pytest.raises(FormatError, match="uint8"):
        decode_widths(encode_tile(codes.astype(np.int16), "lossless").stream, (200, 256))
