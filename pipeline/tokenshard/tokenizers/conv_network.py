"""Convolutional encoder and decoder of the VQGAN family, described by a small config. Knows no ids and no files.

The layout is that of Esser et al. 2021 (arXiv:2012.09841): levels of residual blocks with a change of resolution
between them, and residual blocks, with attention if wanted, in the middle. Without normalization, the default, a
network is a plain chain of convolutions (as in EDSR, arXiv:1707.02921): an id depends on a bounded window of pixels.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.spec.base import Document

Width = Annotated[int, Field(ge=1, le=4096)]
Depth = Annotated[int, Field(ge=0, le=64)]
MAX_LEVELS = 8


class StackConfig(Document):
    """Encoder or decoder: one entry a level, from the finest to the coarsest, which is the token grid.

    Pixels are gathered in squares of ``stem`` pixels before the first convolution (and spread again after the last), so
    the finest level has 1/stem of the resolution of the image and the coarsest 1/(stem * 2^(levels - 1)).
    """

    stem: Literal[1, 2, 4, 8, 16] = 1
    channels: tuple[Width, ...] = Field(min_length=1, max_length=MAX_LEVELS)
    blocks: tuple[Depth, ...] = Field(min_length=1, max_length=MAX_LEVELS, description="residual blocks, by level")
    middle: Depth = Field(default=0, description="residual blocks between the coarsest level and the latents")
    attention: bool = Field(default=False, description="self-attention after each but the last middle block")

    @model_validator(mode="after")
    def _one_entry_a_level(self) -> Self:
        if len(self.channels) != len(self.blocks):
            raise ValueError(f"{len(self.channels)} channels do not fit {len(self.blocks)} blocks; one each a level")
        return self

    @property
    def downsample(self) -> int:
        """Pixels a token covers along each axis."""
        return int(self.stem << (len(self.channels) - 1))


Pixels = Literal["signed", "unit"]
"""What pixels are to a network: numbers in [-1, 1] or in [0, 1]."""


class NetworkDescription(Protocol):
    """What a description of a network answers, whatever its architecture."""

    @property
    def dim(self) -> int:
        """Channels of the latents that are quantized."""
        ...

    @property
    def downsample(self) -> int:
        """Pixels a token covers along each axis."""
        ...

    @property
    def pixels(self) -> Pixels: ...

    def modules(self) -> tuple[nn.Module, nn.Module]:
        """Encoder: float pixels [B, 3, rows * f, columns * f] -> latents [B, dim, rows, columns]; and decoder, back.

        Of clips, both with an axis of time behind the channels.
        """
        ...


class StacksConfig(Document):
    """What all networks of an encoder and a decoder of stacks have."""

    encoder: StackConfig
    decoder: StackConfig
    dim: Width = Field(description="channels of the latents that are quantized")

    @model_validator(mode="after")
    def _same_grid(self) -> Self:
        if self.encoder.downsample != self.decoder.downsample:
            raise ValueError(f"encoder is f{self.encoder.downsample}, decoder f{self.decoder.downsample}")
        return self

    @property
    def downsample(self) -> int:
        """Pixels, or cells, a token covers along each axis."""
        return self.encoder.downsample

    @property
    def pixels(self) -> Pixels:
        """Networks trained here see numbers of both signs: pixels in [-1, 1], or what is left of fields."""
        return "signed"


class NetworkConfig(StacksConfig):
    """Encoder, decoder and the latents between them."""

    norm: Literal["none", "group"] = Field(default="none", description="before each convolution of a block")

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.norm == "group" and any(width % 32 for width in (*self.encoder.channels, *self.decoder.channels)):
            raise ValueError("norm: group needs channels in multiples of 32")
        return self

    def modules(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, with random weights."""
        return Encoder(self.encoder, self.dim, self.norm), Decoder(self.decoder, self.dim, self.norm)


def convolution(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size (or halves it, with stride 2)."""
    return nn.Conv2d(inputs, outputs, side, stride, side // 2)


def normalization(norm: str, channels: int) -> nn.Module:
    """The normalization layer of that name."""
    return nn.GroupNorm(32, channels, eps=1e-6) if norm == "group" else nn.Identity()


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), each convolution after the normalization. Starts as the identity."""

    def __init__(self, channels: int, norm: str, side: int = 3) -> None:
        super().__init__()
        self.norm1 = normalization(norm, channels)
        self.conv1 = convolution(channels, channels, side)
        self.norm2 = normalization(norm, channels)
        self.conv2 = convolution(channels, channels, side)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast(Tensor, self.conv2.bias))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        return cast(Tensor, x + self.conv2(functional.silu(self.norm2(y))))


class Attention(nn.Module):
    """Self-attention with one head over all places of the grid."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm = normalization(norm, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(2).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, 1))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return cast(Tensor, x + self.out(mixed.reshape(x.shape)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution: leaves no checkerboard."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")))


def _middle(config: StackConfig, norm: str) -> list[nn.Module]:
    width = config.channels[-1]
    layers: list[nn.Module] = []
    for place in range(config.middle):
        layers.append(ResidualBlock(width, norm))
        if config.attention and place + 1 < config.middle:
            layers.append(Attention(width, norm))
    return layers


def _blocks(count: int, channels: int, norm: str) -> list[nn.Module]:
    return [ResidualBlock(channels, norm) for _ in range(count)]


def levels_down(config: StackConfig, inputs: int, norm: str) -> list[nn.Module]:
    """Layers from images of so many channels to the coarsest level."""
    layers: list[nn.Module] = [nn.PixelUnshuffle(config.stem)]
    layers.append(convolution(inputs * config.stem**2, config.channels[0]))
    for level, (channels, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
        if level:
            layers.append(convolution(config.channels[level - 1], channels, stride=2))
        layers += _blocks(blocks, channels, norm)
    return layers


def levels_up(config: StackConfig, outputs: int, norm: str) -> list[nn.Module]:
    """Layers from the coarsest level to images of so many channels."""
    layers: list[nn.Module] = []
    for level in reversed(range(len(config.channels))):
        layers += _blocks(config.blocks[level], config.channels[level], norm)
        if level:
            layers.append(Upsample(config.channels[level], config.channels[level - 1]))
    layers += [normalization(norm, config.channels[0]), nn.SiLU()]
    return [*layers, convolution(config.channels[0], outputs * config.stem**2), nn.PixelShuffle(config.stem)]


class Encoder(nn.Sequential):
    """float [B, 3, height, width] in [-1, 1], sizes multiples of f -> latents [B, dim, height / f, width / f]."""

    def __init__(self, config: StackConfig, dim: int, norm: str) -> None:
        layers = [*levels_down(config, 3, norm), *_middle(config, norm)]
        layers += [normalization(norm, config.channels[-1]), nn.SiLU(), convolution(config.channels[-1], dim)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Quantized latents [B, dim, rows, columns] -> float [B, 3, rows * f, columns * f], about in [-1, 1]."""

    def __init__(self, config: StackConfig, dim: int, norm: str) -> None:
        super().__init__(convolution(dim, config.channels[-1]), *_middle(config, norm), *levels_up(config, 3, norm))


class AutoEncoder(nn.Module):
    """Encoder and decoder; what stands between them is the quantizer's."""

    def __init__(self, config: NetworkDescription) -> None:
        super().__init__()
        self.downsample = config.downsample
        self.encoder, self.decoder = config.modules()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of images, and what the decoder makes of them without quantization."""
        z = self.encoder(images)
        return z, self.decoder(z)


def to_signed(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_unit(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(images: Tensor, pixels: Pixels = "signed") -> Tensor:
    """float [B, 3, H, W] about in the range of ``pixels`` -> uint8, rounded and clipped."""
    images = images.float()
    scaled = (images + 1) * 127.5 if pixels == "signed" else images * 255
    return scaled.round().clamp(0, 255).to(torch.uint8)


def parameter_count(module: nn.Module) -> int:
    """Numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
