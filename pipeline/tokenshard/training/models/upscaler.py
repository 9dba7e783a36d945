"""Twice the resolution of a field of heights: a linear map, and a network for what is not linear.

Both see differences between cells only and have no biases, so they know neither height nor size of the relief: a field
that is moved or scaled comes out moved or scaled (bias-free networks, Mohan et al. 2020, arXiv:1906.05478).
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.spec.base import StoredDocument

REACH = 3
"""Cells to each side that the linear map sees."""


class UpscalerConfig(StoredDocument):
    """Everything that decides the shapes of an upscaler, and what it was made for."""

    width: int = Field(ge=1, le=1024)
    depth: int = Field(ge=0, le=64)
    level: int = Field(ge=1, description="level of the grids that it makes")
    input: str = Field(description="what it sees of the level half as fine: elevation, tokens")


class Upscaler(nn.Module):
    """Fields float [B, 1, h, w] -> [B, 1, 2 h, 2 w]."""

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        side = 2 * REACH + 1
        self.linear = nn.Conv2d(1, 4, side, bias=False)
        nn.init.zeros_(self.linear.weight)
        sides = [5, *(3 for _ in range(config.depth - 1))] if config.depth else []
        widths = [1, *(config.width for _ in sides[1:]), 4]
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, outputs, size, bias=False)
            for inputs, outputs, size in zip(widths, widths[1:], sides, strict=False)
        )
        if len(self.layers):
            nn.init.zeros_(cast(nn.Conv2d, self.layers[-1]).weight)

    def forward(self, coarse: Tensor) -> Tensor:
        made = _differences(coarse, self.linear)
        if len(self.layers):
            found = _differences(coarse, cast(nn.Conv2d, self.layers[0]))
            for layer in list(self.layers)[1:]:
                found = _same(functional.relu(found), cast(nn.Conv2d, layer).weight)
            made = made + found
        return functional.interpolate(coarse, scale_factor=2.0, mode="nearest") + functional.pixel_shuffle(made, 2)

    def fill(self, weights: Tensor) -> None:
        """Set the linear map: [4, side, side], to rows and columns of the four finer cells of a cell."""
        with torch.no_grad():
            self.linear.weight.copy_(weights[:, None])


def _differences(field: Tensor, layer: nn.Conv2d) -> Tensor:
    """A convolution whose weights add up to zero."""
    return _same(field, layer.weight - layer.weight.mean(dim=(1, 2, 3), keepdim=True))


def _same(field: Tensor, weight: Tensor) -> Tensor:
    reach = weight.shape[-1] // 2
    return functional.conv2d(functional.pad(field, (reach,) * 4, mode="replicate"), weight)


def bicubic(coarse: Tensor) -> Tensor:
    """The same by bicubic interpolation, a cell lying in the middle of its four finer ones.

    With the sharper of the usual kernels (a = -3/4, as in OpenCV), which is closer to means of cells than a = -1/2.
    """
    rim = 3
    wide = functional.pad(coarse, (rim,) * 4, mode="replicate")
    fine = functional.interpolate(wide, scale_factor=2.0, mode="bicubic", align_corners=False)
    return fine[..., 2 * rim : -2 * rim, 2 * rim : -2 * rim]
