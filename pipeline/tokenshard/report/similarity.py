"""Structural similarity of images: SSIM, and MS-SSIM over five scales."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

_WINDOW = 11
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, from the finest (Wang, Simoncelli, Bovik 2003, table 1)."""
LEAST_SIDE = _WINDOW * 2 ** (len(_SCALE_WEIGHTS) - 1)
"""The shorter side of an image that has a whole window at the coarsest scale of MS-SSIM."""


def ssim(original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float:
    """Structural similarity of uint8 images [height, width, 3], mean over channels and places.

    Wang et al. 2004: Gaussian window of 11x11 pixels, sigma 1.5, constants 0.01 and 0.03, only whole windows. Images
    smaller than the window are continued up to it.
    """
    a, b = _planes(original, reconstruction)
    below, right = (max(0, _WINDOW - side) for side in a.shape[2:])
    if below or right:
        a, b = (functional.pad(image, (0, right, 0, below), mode="replicate") for image in (a, b))
    luminance, structure = _terms(a, b)
    return float((luminance * structure).mean())


def ms_ssim(original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float | None:
    """Multi-scale structural similarity of uint8 images [height, width, 3], mean over channels.

    Wang, Simoncelli and Bovik 2003: contrast and structure at five scales, each half as fine as the one before (means
    of 2x2 pixels), luminance at the coarsest; negative terms count as 0. None where a side is below 176 pixels.
    """
    if min(original.shape[:2]) < LEAST_SIDE:
        return None
    a, b = _planes(original, reconstruction)
    result = torch.ones(3, dtype=a.dtype)
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        if scale:
            a, b = (functional.avg_pool2d(image, 2) for image in (a, b))
        luminance, structure = _terms(a, b)
        last = scale == len(_SCALE_WEIGHTS) - 1
        term = (luminance * structure if last else structure).mean(dim=(1, 2, 3))
        result = result * term.clamp_min(0) ** weight
    return float(result.mean())


def _planes(*images: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[:, None] for image in images)


def _terms(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Luminance, and contrast with structure, of each window."""
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a = _blurred(a * a) - mean_a**2
    var_b = _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """[n, 1, H, W] under the window, without borders."""
    weights = torch.exp(-((torch.arange(_WINDOW, dtype=x.dtype) - _WINDOW // 2) ** 2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    return functional.conv2d(functional.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
