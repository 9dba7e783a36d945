"""`vqbridge`: one codebook that a small vision transformer moves as a whole.

Chang et al. 2025 (arXiv:2509.10140): the codes are taken for the pixels of a square picture with dim channels, cut into
patches, mixed by transformer blocks and put together again. Every step moves all codes through the shared weights.
Exported as the codebook that comes out. For codebooks of 16,384 codes and more, and long training.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.quantizers.simvq import CodebookByGradient


class VQBridge(CodebookByGradient):
    """``size`` codes: a square number, whose root is a multiple of ``patch``.

    patch: side of a patch of codes; width, blocks, heads: of the transformer
    skip: add the codes as they were before the transformer; without it they are the transformer's output alone
    commitment: weight of the pull of the latents to their codes
    """

    name = "vqbridge"

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        patch: int = 4,
        width: int = 128,
        blocks: int = 2,
        heads: int = 4,
        skip: bool = True,
        commitment: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        side = math.isqrt(size)
        if side * side != size or patch < 1 or side % patch:
            raise SpecError(
                f"vqbridge: size {size} is not the square of a multiple of {patch}; take e.g. 1024, 4096 or 16384, or "
                "another patch"
            )
        if width < 1 or heads < 1 or width % heads:
            raise SpecError(f"vqbridge: width {width} cannot be shared by {heads} heads")
        self.dim, self.levels, self.commitment, self.seed = dim, (size,), commitment, seed
        self.patch, self.width, self.heads, self.skip = patch, width, heads, skip
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.weight = nn.Parameter((2 * torch.rand(size, dim) - 1) / size)
            self.places = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
            self.compress = nn.Linear(patch * patch * dim, width)
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
            self.norm = nn.LayerNorm(width)
            self.recover = nn.Linear(width, patch * patch * dim)
            for layer in self.modules():
                if isinstance(layer, nn.Linear):  # with larger ones the codes of a patch's place stay apart as a group
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)

    def moved(self) -> Tensor:
        side = math.isqrt(self.levels[0])
        picture = self.weight.reshape(1, side, side, self.dim).permute(0, 3, 1, 2)
        tokens = functional.pixel_unshuffle(picture, self.patch).flatten(2).transpose(1, 2)
        tokens = self.compress(tokens) + self.places
        for block in self.blocks:
            tokens = block(tokens)
        made = self.recover(self.norm(tokens)).transpose(1, 2).unflatten(2, (side // self.patch, -1))
        codes = functional.pixel_shuffle(made, self.patch).permute(0, 2, 3, 1).reshape(-1, self.dim)
        return self.weight + codes if self.skip else codes

    def options(self) -> dict[str, Any]:
        names = ("patch", "width", "heads", "skip", "commitment", "seed")
        own = {name: getattr(self, name) for name in names}
        return {"dim": self.dim, "size": self.levels[0], "blocks": len(self.blocks), **own}


class Block(nn.Module):
    """A transformer block (attention, then a perceptron, each on normalized tokens [B, N, width] and added)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x + self.narrow(functional.gelu(self.wide(self.norm2(x))))
        return y
