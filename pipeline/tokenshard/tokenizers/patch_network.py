"""A network whose encoder sees one patch at a time, as in PUT (Liu et al. 2022, arXiv:2205.05076).

An id is a function of the f x f pixels it stands for and of nothing else: tiles of an image, in any order, have the ids
of the whole, and a changed patch changes one id. The decoder is convolutional and smooths the seams.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn

from tokenshard.spec.base import Document
from tokenshard.tokenizers.conv_network import (
    Decoder,
    Depth,
    Pixels,
    ResidualBlock,
    StackConfig,
    Width,
    convolution,
)


class PatchLocalConfig(Document):
    """Encoder of single patches, convolutional decoder."""

    architecture: Literal["patch-local"]
    patch: Literal[2, 4, 8, 16, 32] = Field(description="side of a patch in pixels")
    width: Width = Field(description="channels of the encoder")
    blocks: Depth = Field(description="residual blocks of the encoder")
    decoder: StackConfig
    dim: Width = Field(description="channels of the latents that are quantized")

    @model_validator(mode="after")
    def _same_grid(self) -> Self:
        if self.decoder.downsample != self.patch:
            raise ValueError(f"patches have {self.patch} pixels a side, the decoder is f{self.decoder.downsample}")
        return self

    @property
    def downsample(self) -> int:
        """Pixels a token covers along each axis."""
        return self.patch

    @property
    def pixels(self) -> Pixels:
        """Networks trained here see pixels in [-1, 1]."""
        return "signed"

    def modules(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, with random weights."""
        return PatchEncoder(self.patch, self.width, self.blocks, self.dim), Decoder(self.decoder, self.dim, "none")


class PatchEncoder(nn.Sequential):
    """float [B, 3, rows * f, columns * f] -> latents [B, dim, rows, columns], each of its own patch."""

    def __init__(self, patch: int, width: int, blocks: int, dim: int) -> None:
        super().__init__(
            nn.PixelUnshuffle(patch),
            convolution(3 * patch**2, width, 1),
            *(ResidualBlock(width, "none", 1) for _ in range(blocks)),
            nn.SiLU(),
            convolution(width, dim, 1),
        )
