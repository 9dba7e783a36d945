"""LPIPS and rFID of reconstructions: measures in the features of networks whose weights the user brings.

rFID is the Fréchet Inception distance (Heusel et al. 2017) of the reconstructions from the very images they are of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.report.frechet import Moments, frechet_distance
from tokenshard.report.inception import FEATURES, SIDE, Inception
from tokenshard.training.perceptual import Lpips

BATCH = 16
"""Pairs of images that Inception sees together."""


class FeatureMeasures:
    """Adds up what the networks say of pairs of images of any sizes, one at a time."""

    def __init__(self, lpips: Lpips | None = None, inception: Inception | None = None, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self.lpips = None if lpips is None else lpips.to(self._device)
        self.inception = None if inception is None else inception.to(self._device)
        self._distances: list[float] = []
        self._waiting: list[Tensor] = []
        self._moments = (Moments(FEATURES), Moments(FEATURES))

    @torch.inference_mode()
    def add(self, image: NDArray[np.uint8], made: NDArray[np.uint8]) -> None:
        """An image uint8 [height, width, 3] and its reconstruction. Raises SpecError where LPIPS needs larger ones."""
        stacked = torch.from_numpy(np.stack([image, made])).to(self._device)
        pair = stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.lpips is not None:
            if min(image.shape[:2]) < self.lpips.least_side:
                raise SpecError(
                    f"an image of {image.shape[0]} x {image.shape[1]} pixels: LPIPS with {self.lpips.network} needs "
                    f"{self.lpips.least_side} a side; leave such images or --lpips out"
                )
            self._distances.append(float(self.lpips(pair[1:], pair[:1])))
        if self.inception is not None:
            self._waiting.append(functional.interpolate(pair, (SIDE, SIDE), mode="bilinear", align_corners=False))
            if len(self._waiting) == BATCH:
                self._flush(self.inception)

    @torch.inference_mode()
    def results(self) -> dict[str, Any]:
        """What was asked for: `lpips`, the mean over images, and `rfid`; each with the SHA-256 of its weights.

        Raises SpecError where there are too few images for rFID.
        """
        found: dict[str, Any] = {}
        if self.lpips is not None:
            found |= {"lpips": float(np.mean(self._distances)), "lpips_network": self.lpips.network}
            found["lpips_weights"] = self.lpips.sha256
        if self.inception is not None:
            self._flush(self.inception)
            if self._moments[0].count < 2:
                raise SpecError("rFID compares distributions: give at least two images, better 50,000")
            found |= {"rfid": frechet_distance(*self._moments), "rfid_weights": self.inception.sha256}
        return found

    def _flush(self, inception: Inception) -> None:
        if self._waiting:
            features = inception(torch.cat(self._waiting)).unflatten(0, (-1, 2))
            for moments, mine in zip(self._moments, features.unbind(1), strict=True):
                moments.add(mine)
            self._waiting.clear()
