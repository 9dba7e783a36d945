"""The networks of published VQGAN checkpoints, described by a small config. Their weights come from other programs.

`vqgan`: Esser et al. 2021 (arXiv:2012.09841) and what follows its layout (latent diffusion, LlamaGen, IBQ, diffusers).
`maskgit`: Chang et al. 2022 (arXiv:2202.04200): no attention, average pooling, convolutions of blocks without biases,
and a block that changes its width adds a 1x1 convolution of its own output.

Group normalization (and attention) make every id depend on the whole image.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.spec.base import Document
from tokenshard.tokenizers.conv_network import MAX_LEVELS, Depth, Pixels, Width


class VqganStack(Document):
    """Encoder or decoder: one entry a level, from the finest to the coarsest, which is the token grid."""

    channels: tuple[Width, ...] = Field(min_length=1, max_length=MAX_LEVELS)
    blocks: tuple[Annotated[Depth, Field(ge=1)], ...] = Field(
        min_length=1, max_length=MAX_LEVELS, description="residual blocks, by level"
    )
    attention: tuple[bool, ...] = Field(
        min_length=1, max_length=MAX_LEVELS, description="self-attention after each block, by level"
    )
    middle: Depth = Field(default=2, description="residual blocks between the coarsest level and the latents")
    middle_attention: bool = Field(default=True, description="self-attention after each but the last middle block")

    @model_validator(mode="after")
    def _one_entry_a_level(self) -> Self:
        if not len(self.channels) == len(self.blocks) == len(self.attention):
            raise ValueError("channels, blocks and attention need one entry each a level")
        return self


class VqganConfig(Document):
    """A network of the VQGAN family as published checkpoints have it."""

    architecture: Literal["vqgan", "maskgit"]
    stem: Width = Field(description="channels of the first convolution")
    encoder: VqganStack
    decoder: VqganStack
    latent: Width = Field(description="channels the encoder ends with and the decoder begins with")
    dim: Width = Field(description="channels of the latents that are quantized")
    projected: bool = Field(description="1x1 convolutions between the latents of the network and those quantized")
    groups: int = Field(default=32, ge=1, le=4096, description="groups of the normalization")
    pixels: Pixels = "signed"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if len(self.encoder.channels) != len(self.decoder.channels):
            raise ValueError(f"encoder has {len(self.encoder.channels)} levels, decoder {len(self.decoder.channels)}")
        if not self.projected and self.latent != self.dim:
            raise ValueError(f"latents of {self.latent} channels are quantized as {self.dim}, without a projection")
        widths = (self.stem, *self.encoder.channels, *self.decoder.channels)
        if any(width % self.groups for width in widths):
            raise ValueError(f"channels {sorted(set(widths))} cannot be normalized in {self.groups} groups")
        return self

    @property
    def downsample(self) -> int:
        """Pixels a token covers along each axis."""
        return 1 << (len(self.encoder.channels) - 1)

    def modules(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, with random weights."""
        return VqganEncoder(self), VqganDecoder(self)


class Block(nn.Module):
    """Residual block: the input plus two normalized convolutions of it."""

    def __init__(self, inputs: int, outputs: int, config: VqganConfig) -> None:
        super().__init__()
        bias = config.architecture == "vqgan"
        self.of_output = config.architecture == "maskgit"
        self.norm1 = _norm(inputs, config)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = _norm(outputs, config)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.shortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(outputs if self.of_output else inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        if self.shortcut is not None:
            x = self.shortcut(y if self.of_output else x)
        return x + cast(Tensor, y)


class SelfAttention(nn.Module):
    """x plus self-attention with one head over all places of the grid."""

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm = _norm(channels, config)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        q, k, v = (part(normal).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + cast(Tensor, self.out(mixed.reshape(x.shape)))


class Halving(nn.Conv2d):
    """3x3 convolution with stride 2, padded by a row below and a column to the right."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class Doubling(nn.Conv2d):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks, each of the first ones followed by attention where there is any, then a change of resolution."""

    def __init__(self, inputs: int, width: int, blocks: int, attention: int, config: VqganConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width if place else inputs, width, config) for place in range(blocks))
        self.attention = nn.ModuleList(SelfAttention(width, config) for _ in range(attention))
        self.resample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place < len(self.attention):
                x = self.attention[place](x)
        return x if self.resample is None else cast(Tensor, self.resample(x))


class VqganEncoder(nn.Module):
    """float pixels [B, 3, height, width], sizes multiples of f -> latents [B, dim, height / f, width / f]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        stack, plain = config.encoder, config.architecture == "vqgan"
        self.conv_in = nn.Conv2d(3, config.stem, 3, padding=1, bias=plain)
        self.levels = nn.ModuleList()
        width = config.stem
        for number, channels in enumerate(stack.channels):
            level = Level(width, channels, stack.blocks[number], _attentions(stack, number), config)
            if number + 1 < len(stack.channels):
                level.resample = Halving(channels) if plain else nn.AvgPool2d(2)
            self.levels.append(level)
            width = channels
        self.middle = _middle(stack, config)
        self.norm_out = _norm(width, config)
        self.conv_out = nn.Conv2d(width, config.latent, 3, padding=1) if plain else nn.Conv2d(width, config.latent, 1)
        self.project = nn.Conv2d(config.latent, config.dim, 1) if config.projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        x = self.conv_out(functional.silu(self.norm_out(self.middle(x))))
        return cast(Tensor, self.project(x))


class VqganDecoder(nn.Module):
    """Quantized latents [B, dim, rows, columns] -> float pixels [B, 3, rows * f, columns * f]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        stack = config.decoder
        width = stack.channels[-1]
        self.project = nn.Conv2d(config.dim, config.latent, 1) if config.projected else nn.Identity()
        self.conv_in = nn.Conv2d(config.latent, width, 3, padding=1)
        self.middle = _middle(stack, config)
        self.levels = nn.ModuleList()
        for number in reversed(range(len(stack.channels))):
            channels = stack.channels[number]
            level = Level(width, channels, stack.blocks[number], _attentions(stack, number), config)
            if number:
                level.resample = Doubling(channels)
            self.levels.append(level)
            width = channels
        self.norm_out = _norm(width, config)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv_in(self.project(x)))
        for level in self.levels:
            x = level(x)
        return cast(Tensor, self.conv_out(functional.silu(self.norm_out(x))))


def _middle(stack: VqganStack, config: VqganConfig) -> Level:
    width = stack.channels[-1]
    return Level(width, width, stack.middle, stack.middle - 1 if stack.middle_attention else 0, config)


def _attentions(stack: VqganStack, level: int) -> int:
    return stack.blocks[level] if stack.attention[level] else 0


def _norm(channels: int, config: VqganConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.groups, channels, eps=1e-6)
