"""`simvq`: one codebook that a single linear layer moves as a whole.

Zhu et al. 2024 (arXiv:2411.02038): the codes are a fixed random matrix times a learned dim x dim matrix, so that every
step moves all of them and none stays behind. Exported as the product.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.quantizers.base import Quantized, Quantizer, from_rows, no_autocast, straight_through, to_rows
from tokenshard.quantizers.lookup import Lookup
from tokenshard.quantizers.search import nearest, nearest_in_training


class CodebookByGradient(Quantizer):
    """Base of quantizers whose codebook is a function of learned weights, trained by the gradient of its distance."""

    commitment: float
    weight: nn.Parameter

    @abstractmethod
    def moved(self) -> Tensor:
        """The effective codebook [levels[0], dim], computed from ``weight``."""

    def codes(self) -> Tensor:
        """The effective codebook, float32 [levels[0], dim], also inside autocast."""
        with no_autocast(self.weight):
            return self.moved()

    def forward(self, z: Tensor) -> Quantized:
        with no_autocast(z):
            rows, codes = to_rows(z), self.codes()
            ids = nearest_in_training(rows.detach(), codes.detach())
            chosen = codes[ids]
            loss = functional.mse_loss(chosen, rows.detach())
            loss = loss + self.commitment * functional.mse_loss(rows, chosen.detach())
            return Quantized(from_rows(straight_through(rows, chosen), z), from_rows(ids[:, None], z), loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with no_autocast(z):
            return from_rows(nearest(to_rows(z), self.codes())[:, None], z)

    def vectors(self, ids: Tensor) -> Tensor:
        return self.codes()[ids[:, 0].long()].movedim(-1, 1)

    def exported(self) -> Lookup:
        return Lookup.of([self.codes()])


class SimVQ(CodebookByGradient):
    """``size`` codes; ``commitment`` weighs the pull of the latents to their codes."""

    name = "simvq"
    frozen: Tensor

    def __init__(self, dim: int, size: int, *, commitment: float = 0.25, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.levels, self.commitment, self.seed = dim, (size,), commitment, seed
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frozen", torch.randn(size, dim, generator=generator) / dim**0.5)
        self.weight = nn.Parameter(torch.eye(dim))

    def moved(self) -> Tensor:
        return self.frozen @ self.weight

    def options(self) -> dict[str, Any]:
        return {"dim": self.dim, "size": self.levels[0], "commitment": self.commitment, "seed": self.seed}
