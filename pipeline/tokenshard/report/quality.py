"""Figures of merit of a reconstruction and of its codes: PSNR, bits per pixel, entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IDENTICAL_DB = 100.0
"""PSNR reported for identical images, whose true value is infinite: it keeps means finite."""


def psnr(original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB (peak 255), the mean over images of each image's own value.

    Both are uint8 of equal shape, [height, width, channels] or [batch, height, width, channels]. An image's value is
    capped at 100 dB. Raises ValueError on other arrays.
    """
    if original.shape != reconstruction.shape or original.dtype != np.uint8 or reconstruction.dtype != np.uint8:
        raise ValueError(
            f"PSNR compares uint8 images of equal shape, not {original.dtype} {list(original.shape)} "
            f"and {reconstruction.dtype} {list(reconstruction.shape)}"
        )
    pairs = zip(
        original.reshape(-1, *original.shape[-3:]), reconstruction.reshape(-1, *original.shape[-3:]), strict=True
    )
    values = []
    for a, b in pairs:
        error = float(np.mean((a.astype(np.float32) - b) ** 2, dtype=np.float64))
        values.append(min(IDENTICAL_DB, 10 * np.log10(255**2 / error)) if error else IDENTICAL_DB)
    return float(np.mean(values))


def bits_per_pixel(stored_bytes: int, pixels: int) -> float:
    """Stored bits per pixel; a pixel is one place of the image, whatever its channels."""
    return 8 * stored_bytes / pixels


def order0_entropy(ids: NDArray[Any]) -> float:
    """Empirical entropy of ids in bits per id, without any context (Shannon 1948)."""
    counts = np.unique(ids, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
