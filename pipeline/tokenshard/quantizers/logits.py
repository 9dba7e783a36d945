"""`logits`: the id is the largest of linear functions of the latent; vectors are a codebook of their own.

What a Gumbel-softmax quantizer (Jang et al. 2017, arXiv:1611.01144) computes once it is trained and nothing is drawn at
random any more. Comes with imported checkpoints only; it is not trained here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenshard.quantizers.base import Quantized, Quantizer, from_rows, no_autocast, straight_through, to_rows
from tokenshard.quantizers.search import nearest


class Logits(Quantizer):
    """``size`` logits weight @ z + bias, and codes [size, dim]."""

    name = "logits"
    weight: Tensor
    bias: Tensor
    codebook: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.dim, self.levels = dim, (size,)
        self.register_buffer("weight", torch.zeros(size, dim))
        self.register_buffer("bias", torch.zeros(size))
        self.register_buffer("codebook", torch.zeros(size, dim))

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, codebook: Tensor) -> Logits:
        """From weights and codes [size, dim] and biases [size]."""
        made = cls(weight.shape[1], len(weight))
        for name, tensor in {"weight": weight, "bias": bias, "codebook": codebook}.items():
            made.get_buffer(name).copy_(tensor)
        return made

    def forward(self, z: Tensor) -> Quantized:
        ids = self.encode(z)
        return Quantized(straight_through(z.float(), self.vectors(ids)), ids, z.new_zeros((), dtype=torch.float32))

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with no_autocast(z):
            # |z - w|² - |w|² - 2b is |z|² less twice the logit: the search that rounds the same way everywhere
            penalty = -(self.weight.double().square().sum(1) + 2 * self.bias.double()).float()
            return from_rows(nearest(to_rows(z), self.weight, penalty)[:, None], z)

    def vectors(self, ids: Tensor) -> Tensor:
        return self.codebook[ids[:, 0].long()].movedim(-1, 1)

    def options(self) -> dict[str, Any]:
        return {"dim": self.dim, "size": self.levels[0]}

    def exported(self) -> Logits:
        return self
