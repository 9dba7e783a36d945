"""SSIM and MS-SSIM against scikit-image and a plain NumPy reading of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from tokenshard.report.similarity import LEAST_SIDE, ms_ssim, ssim

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@pytest.fixture(scope="module")
def pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A photograph and a noisy version of it."""
    photo = skimage.data.chelsea()[:200, :256]
    noise = np.random.default_rng(0).normal(0, 15, photo.shape)
    return photo, np.clip(photo + noise, 0, 255).astype(np.uint8)


def test_ssim_is_that_of_scikit_image(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    whole = structural_similarity(
        *pair, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )[1]
    assert ssim(*pair) == pytest.approx(whole[5:-5, 5:-5].mean(), abs=1e-6)


def test_ms_ssim_is_that_of_the_paper(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    values = []
    for channel in range(3):
        a, b = (image[:, :, channel].astype(np.float64) for image in pair)
        value = 1.0
        for scale, weight in enumerate(WEIGHTS):
            if scale:
                a, b = (half(image) for image in (a, b))
            blur = lambda x: gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]  # noqa: E731
            mean_a, mean_b = blur(a), blur(b)
            spread = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
            structure = (2 * (blur(a * b) - mean_a * mean_b) + 58.5225) / (spread + 58.5225)
            luminance = (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025)
            value *= float((structure * luminance if scale == 4 else structure).mean()) ** weight
        values.append(value)
    assert ms_ssim(*pair) == pytest.approx(np.mean(values), abs=1e-9)
    assert 0.5 < np.mean(values) < 0.99


def test_an_image_is_like_itself_and_small_ones_have_no_five_scales(
    pair: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    photo = pair[0]
    assert ms_ssim(photo, photo) == pytest.approx(1)
    assert ms_ssim(photo[:LEAST_SIDE, :LEAST_SIDE], photo[:LEAST_SIDE, :LEAST_SIDE]) == pytest.approx(1)
    assert ms_ssim(photo[: LEAST_SIDE - 1], photo[: LEAST_SIDE - 1]) is None


def half(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    rows, columns = (side // 2 for side in image.shape)
    return image[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(axis=(1, 3))
