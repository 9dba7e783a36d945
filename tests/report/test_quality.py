"""PSNR, bits per pixel and entropy against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tokenshard.report.quality import IDENTICAL_DB, bits_per_pixel, order0_entropy, psnr


def test_an_error_of_one_grey_level_is_48_db() -> None:
    image = np.full((5, 7, 3), 100, np.uint8)
    assert psnr(image, image + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)


def test_the_largest_possible_error_is_0_db() -> None:
    assert psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) == pytest.approx(0)


def test_a_batch_is_the_mean_over_images_in_db() -> None:
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = np.stack([np.full((4, 4, 3), 1, np.uint8), np.full((4, 4, 3), 10, np.uint8)])
    assert psnr(a, b) == pytest.approx((psnr(a[0], b[0]) + psnr(a[1], b[1])) / 2)
    assert psnr(a, b) == pytest.approx(48.1308 - 10, abs=1e-4)


def test_identical_images_count_as_the_cap() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    assert psnr(image, image) == IDENTICAL_DB


def test_arrays_that_cannot_be_compared_are_refused() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    for other in (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4, 3))):
        with pytest.raises(ValueError, match="uint8 images of equal shape"):
            psnr(image, other)


def test_bits_per_pixel_counts_places_not_channels() -> None:
    assert bits_per_pixel(1000, 80 * 100) == 1.0


def test_entropy_of_equally_likely_ids_is_the_logarithm_of_their_number() -> None:
    assert order0_entropy(np.tile(np.arange(32), 5)) == pytest.approx(5)
    assert order0_entropy(np.full(9, 7)) == 0
    assert order0_entropy(np.array([0, 0, 0, 1])) == pytest.approx(0.8112781)
