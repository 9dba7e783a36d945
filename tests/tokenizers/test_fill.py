"""Lost ids get the code nearest to the mean vector of their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenshard.report.quality import psnr
from tokenshard.tokenizers.fill import fill_lost
from tokenshard.tokenizers.patch import PatchTokenizer

LINE = np.arange(10, dtype=np.float32)[:, None]
"""Code i stands for the number i."""


def test_a_lost_id_is_the_mean_of_those_around_it() -> None:
    ids = np.array([[1, 2, 3], [4, 0, 6], [7, 8, 9]], np.uint16)
    known = ids > 0
    assert fill_lost(ids, known, LINE)[1, 1] == 5
    assert fill_lost(np.array([3, 0, 0, 0, 0, 9], np.uint16), np.array([1, 0, 0, 0, 0, 1], bool), LINE).tolist() == [
        *(3, 3, 3, 9, 9, 9)
    ]


def test_frames_are_neighbours_too() -> None:
    ids = np.stack([np.full((2, 2), 3), np.zeros((2, 2)), np.full((2, 2), 5)]).astype(np.uint16)
    assert (fill_lost(ids, ids > 0, LINE)[1] == 4).all()


def test_without_any_known_id_the_code_nearest_to_nothing_is_taken() -> None:
    residuals = np.array([[3.0], [-1.0], [0.25], [2.0]], np.float32)
    assert (fill_lost(np.zeros((4, 4), np.uint16), np.zeros((4, 4), bool), residuals) == 2).all()


@given(st.integers(0, 1000), st.sampled_from([(7,), (5, 6), (3, 4, 5), (1, 1)]), st.floats(0, 1))
def test_known_ids_stay_and_all_are_codes(seed: int, grid: tuple[int, ...], share: float) -> None:
    rng = np.random.default_rng(seed)
    ids, known = rng.integers(0, 10, grid).astype(np.uint16), rng.random(grid) >= share
    filled = fill_lost(ids, known, LINE)
    assert np.array_equal(filled[known], ids[known])
    assert filled.dtype == np.uint16
    assert filled.max() < 10


@pytest.mark.parametrize("side", [4, 8])
def test_a_fifth_of_the_ids_filled_from_neighbours_beats_the_mean_code_by_a_decibel(
    side: int, photos: list[NDArray[np.uint8]]
) -> None:
    tokenizer = PatchTokenizer.fit(photos, 0, patch=(side, side), k=256)
    (codebook,) = tokenizer.codebooks()
    rng, gains = np.random.default_rng(0), []
    for photo in photos:
        ids = tokenizer.encode(photo[None])[0, 0]
        known = rng.random(ids.shape) >= 0.2
        mean = codebook[ids[known]].mean(axis=0)
        mean_code = np.square(codebook - mean).sum(axis=1).argmin()
        both = (fill_lost(ids, known, codebook), np.where(known, ids, mean_code))
        shown = [tokenizer.decode(one[None, None], photo.shape[:2])[0] for one in both]
        gains.append(psnr(photo, shown[0]) - psnr(photo, shown[1]))
    assert min(gains) >= 1
