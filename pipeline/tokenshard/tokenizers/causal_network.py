"""A network of clips: the first frame alone, then groups of frames, each seen with the groups before it and none after.

A clip of 1 + n * k frames becomes 1 + k groups; frames of a group are channels of one picture, the first frame counts n
times. Causal in time as in MAGVIT-v2 (Yu et al. 2023, arXiv:2310.05737): what a group is given depends on it and on the
past, so that an image is a clip of one frame and a clip goes on without any change of what came before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.tokenizers.conv_network import StacksConfig, convolution, levels_down, levels_up


class CausalConfig(StacksConfig):
    """Encoder and decoder of clips. The ``middle`` blocks of both, on the token grid, see the group before."""

    architecture: Literal["causal"]
    frames: Literal[2, 4, 8] = Field(default=4, description="of a group, which is one step of the token grid in time")

    @model_validator(mode="after")
    def _no_attention(self) -> Self:
        if self.encoder.attention or self.decoder.attention:
            raise ValueError("a causal network has no attention")
        return self

    def modules(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, with random weights."""
        return CausalEncoder(self), CausalDecoder(self)


class CausalBlock(nn.Module):
    """x + conv(silu(conv(silu(x before, x)))): a residual block that also sees the group before.

    Starts as the identity. The first convolution is one over rows, columns and two steps of time.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(2 * channels, channels)
        self.conv2 = convolution(channels, channels)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast(Tensor, self.conv2.bias))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        y = self.conv1(functional.silu(torch.cat([before, x], 1)))
        return cast(Tensor, x + self.conv2(functional.silu(y)))


class CausalStack(nn.Module):
    """Layers that see one group, blocks that see the one before too, layers that see one group."""

    def __init__(self, head: Sequence[nn.Module], width: int, blocks: int, tail: Sequence[nn.Module]) -> None:
        super().__init__()
        self.head = nn.Sequential(*head)
        self.blocks = nn.ModuleList(CausalBlock(width) for _ in range(blocks))
        self.tail = nn.Sequential(*tail)

    def step(self, x: Tensor, past: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """One group [B, C, rows, columns], and what is the ``past`` of the next one; None for the first."""
        x, seen = self.head(x), []
        for number, block in enumerate(self.blocks):
            seen.append(x)
            x = block(x, x if past is None else past[number])
        return self.tail(x), seen

    def whole(self, x: Tensor) -> Tensor:
        """All groups [B, C, groups, rows, columns] at once: the same, faster in training."""
        count = x.shape[2]
        x = self.head(x.transpose(1, 2).flatten(0, 1))
        for block in self.blocks:
            clips = x.reshape(-1, count, *x.shape[1:])
            x = block(x, torch.cat([clips[:, :1], clips[:, :-1]], 1).flatten(0, 1))
        made: Tensor = self.tail(x)
        return made.reshape(-1, count, *made.shape[1:]).transpose(1, 2)


class CausalEncoder(CausalStack):
    """float [B, 3, 1 + n * k, height, width] in [-1, 1] -> latents [B, dim, 1 + k, height / f, width / f]."""

    def __init__(self, config: CausalConfig) -> None:
        stack, width = config.encoder, config.encoder.channels[-1]
        head, tail = levels_down(stack, 3 * config.frames, "none"), [nn.SiLU(), convolution(width, config.dim)]
        super().__init__(head, width, stack.middle, tail)
        self.frames = config.frames

    def forward(self, clips: Tensor) -> Tensor:
        first = clips[:, :, :1].expand(-1, -1, self.frames - 1, -1, -1)
        batch, channels, _, *size = clips.shape
        groups = torch.cat([first, clips], 2).reshape(batch, channels, -1, self.frames, *size)
        return self.whole(groups.permute(0, 3, 1, 2, 4, 5).flatten(1, 2))


class CausalDecoder(CausalStack):
    """Quantized latents [B, dim, 1 + k, rows, columns] -> float [B, 3, 1 + n * k, rows * f, columns * f]."""

    def __init__(self, config: CausalConfig) -> None:
        stack, width = config.decoder, config.decoder.channels[-1]
        tail = levels_up(stack, 3 * config.frames, "none")
        super().__init__([convolution(config.dim, width)], width, stack.middle, tail)
        self.frames = config.frames

    def forward(self, latents: Tensor) -> Tensor:
        groups = self.whole(latents)
        frames = groups.reshape(len(groups), self.frames, 3, *groups.shape[2:])
        return frames.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)[:, :, self.frames - 1 :]


def group_count(frames: int, size: int) -> int:
    """Groups of ``size`` frames that a clip has: the first frame is one, the last may be incomplete."""
    return 1 - (-(frames - 1) // size)
