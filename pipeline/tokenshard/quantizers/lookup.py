"""`lookup`: plain codebooks, searched one after the other. What every learned quantizer is stored as.

One codebook is plain vector quantization. Several are residual ones: each quantizes what the ones before left over, and
the vectors are added up. Product quantization is the same with codebooks that are zero outside their part of the axes
(or orthogonal to each other, where a rotation was learned).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenshard.quantizers.base import Quantized, Quantizer, from_rows, no_autocast, straight_through, to_rows
from tokenshard.quantizers.search import nearest


class Lookup(Quantizer):
    """Fixed codebooks float32 [levels[i], dim], with a penalty [levels[i]] added to squared distances in the search.

    normalized: latents are divided by their length before the search.
    """

    name = "lookup"

    def __init__(self, dim: int, levels: Sequence[int], normalized: bool = False) -> None:
        super().__init__()
        self.dim, self.levels, self.normalized = dim, tuple(levels), normalized
        for level, size in enumerate(self.levels):
            self.register_buffer(f"codebook_{level}", torch.zeros(size, dim))
            self.register_buffer(f"penalty_{level}", torch.zeros(size))

    @classmethod
    def of(
        cls, codebooks: Sequence[Tensor], penalties: Sequence[Tensor | None] = (), normalized: bool = False
    ) -> Lookup:
        """From codebooks [K, dim] and, where there are any, penalties [K]."""
        made = cls(codebooks[0].shape[1], [len(codebook) for codebook in codebooks], normalized)
        made.to(codebooks[0].device)
        for level, codebook in enumerate(codebooks):
            made.codebook(level).copy_(codebook.detach())
            penalty = penalties[level] if penalties else None
            if penalty is not None:
                made.penalty(level).copy_(penalty.detach())
        return made

    def codebook(self, level: int) -> Tensor:
        """float32 [levels[level], dim]."""
        return self.get_buffer(f"codebook_{level}")

    def penalty(self, level: int) -> Tensor:
        """float32 [levels[level]]."""
        return self.get_buffer(f"penalty_{level}")

    def forward(self, z: Tensor) -> Quantized:
        ids = self.encode(z)
        return Quantized(straight_through(z.float(), self.vectors(ids)), ids, z.new_zeros((), dtype=torch.float32))

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with no_autocast(z):
            rest = to_rows(z)
            if self.normalized:
                rest = functional.normalize(rest, dim=1)
            ids = []
            for level in range(len(self.levels)):
                ids.append(nearest(rest, self.codebook(level), self.penalty(level)))
                if level + 1 < len(self.levels):
                    rest = rest - self.codebook(level)[ids[-1]]
            return from_rows(torch.stack(ids, 1), z)

    def vectors(self, ids: Tensor) -> Tensor:
        total = self.codebook(0)[ids[:, 0].long()]
        for level in range(1, ids.shape[1]):
            total = total + self.codebook(level)[ids[:, level].long()]
        return total.movedim(-1, 1)

    def options(self) -> dict[str, Any]:
        return {"dim": self.dim, "levels": list(self.levels), "normalized": self.normalized}

    def exported(self) -> Lookup:
        return self
