"""`rvq`: residual quantization. Each level quantizes what the levels before left over; any first levels decode alone.

Zeghidour et al. 2021 (arXiv:2107.03312), with its quantizer dropout: in training some samples use only the first levels
so that every depth gives good reconstructions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenshard.quantizers.base import Quantized, Quantizer, no_autocast, straight_through
from tokenshard.quantizers.distributed import rank_and_world
from tokenshard.quantizers.lookup import Lookup
from tokenshard.quantizers.vq import VQ


class RVQ(Quantizer):
    """``depth`` codebooks of ``size`` codes; further options are those of :class:`VQ`.

    dropout: share of the samples of a batch that stop after a random level
    """

    name = "rvq"

    def __init__(
        self, dim: int, size: int, depth: int = 4, *, dropout: float = 0.5, seed: int = 0, **options: Any
    ) -> None:
        super().__init__()
        self.dim, self.levels, self.dropout, self.seed = dim, (size,) * depth, dropout, seed
        self.parts = nn.ModuleList(VQ(dim, size, seed=seed + level, **options) for level in range(depth))

    def part(self, level: int) -> VQ:
        """The quantizer of a level."""
        return cast(VQ, self.parts[level])

    def forward(self, z: Tensor) -> Quantized:
        with no_autocast(z):
            rest, total = z.float(), torch.zeros_like(z, dtype=torch.float32)
            ids, losses = [], []
            depth = self._depths(len(z)).to(z.device).view(-1, *[1] * (z.ndim - 1))
            for level in range(len(self.levels)):
                quantized = self.part(level)(rest)
                vectors = quantized.vectors.detach()
                total = total + torch.where(level < depth, vectors, 0.0)
                rest = rest - vectors
                ids.append(quantized.ids)
                losses.append(quantized.loss)
            vectors = straight_through(z.float(), total)
            return Quantized(vectors, torch.cat(ids, 1), torch.stack(losses).mean())

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        return self.exported().encode(z)

    def vectors(self, ids: Tensor) -> Tensor:
        total = self.part(0).vectors(ids[:, :1])
        for level in range(1, ids.shape[1]):
            total = total + self.part(level).vectors(ids[:, level : level + 1])
        return total

    def options(self) -> dict[str, Any]:
        shared = {name: value for name, value in self.part(0).options().items() if name not in ("dim", "size", "seed")}
        own = {"depth": len(self.levels), "dropout": self.dropout, "seed": self.seed}
        return {"dim": self.dim, "size": self.levels[0], **own, **shared}

    def exported(self) -> Lookup:
        parts = [self.part(level) for level in range(len(self.levels))]
        return Lookup.of([part.codes() for part in parts], [part.penalty() for part in parts])

    def _depths(self, batch: int) -> Tensor:
        """How many levels each sample uses, int64 [batch]: all of them outside training."""
        depths = torch.full((batch,), len(self.levels))
        if not self.training or not self.dropout:
            return depths
        rank, world = rank_and_world()
        generator = torch.Generator().manual_seed((self.seed << 32) + self.part(0).steps_made)
        drawn = torch.randint(1, len(self.levels) + 1, (world, batch), generator=generator)[rank]
        chances = torch.rand(world, batch, generator=generator)[rank]
        return torch.where(chances < self.dropout, drawn, depths)
