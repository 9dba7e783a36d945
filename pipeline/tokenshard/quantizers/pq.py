"""`pq` and `opq`: the axes are cut into parts, and each part has a codebook of its own.

Jégou, Douze and Schmid 2011 (product quantization); opq turns the latents first by a learned rotation, so that the
parts share the load (Ge et al. 2013, "Optimized Product Quantization"). Exported as codebooks that are zero outside
their part, with the rotation folded in.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.quantizers.base import Quantized, Quantizer, from_rows, no_autocast, straight_through, to_rows
from tokenshard.quantizers.lookup import Lookup
from tokenshard.quantizers.vq import VQ


class PQ(Quantizer):
    """``parts`` codebooks of ``size`` codes for ``dim / parts`` axes each; further options are those of :class:`VQ`."""

    name = "pq"

    def __init__(self, dim: int, size: int, parts: int = 4, *, seed: int = 0, **options: Any) -> None:
        super().__init__()
        if parts < 1 or dim % parts:
            raise SpecError(f"{self.name}: dim {dim} cannot be cut into {parts} equal parts")
        if options.get("normalized"):
            raise SpecError(f"{self.name}: parts cannot be normalized")
        self.dim, self.levels, self.seed = dim, (size,) * parts, seed
        self.parts = nn.ModuleList(VQ(dim // parts, size, seed=seed + part, **options) for part in range(parts))

    def part(self, level: int) -> VQ:
        """The quantizer of a part."""
        return cast(VQ, self.parts[level])

    def turned(self, rows: Tensor) -> Tensor:
        """Latents [N, dim] in the axes that are cut."""
        return rows

    def turned_back(self, rows: Tensor) -> Tensor:
        """The reverse of :meth:`turned`."""
        return rows

    def forward(self, z: Tensor) -> Quantized:
        with no_autocast(z):
            rows = to_rows(z)
            found = [
                self.part(level)(part[..., None])
                for level, part in enumerate(self.turned(rows).chunk(len(self.levels), 1))
            ]
            vectors = self.turned_back(torch.cat([one.vectors[..., 0] for one in found], 1).detach())
            ids = torch.cat([one.ids[..., 0] for one in found], 1)
            loss = torch.stack([one.loss for one in found]).mean()
            return Quantized(from_rows(straight_through(rows, vectors), z), from_rows(ids, z), loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        return self.exported().encode(z)

    def vectors(self, ids: Tensor) -> Tensor:
        return self.exported().vectors(ids)

    def options(self) -> dict[str, Any]:
        shared = {name: value for name, value in self.part(0).options().items() if name not in ("dim", "size", "seed")}
        del shared["normalized"]
        return {"dim": self.dim, "size": self.levels[0], "parts": len(self.levels), "seed": self.seed, **shared}

    @torch.no_grad()
    def exported(self) -> Lookup:
        parts = [self.part(level) for level in range(len(self.levels))]
        width = self.dim // len(parts)
        padded = [
            functional.pad(part.codes(), (level * width, self.dim - (level + 1) * width))
            for level, part in enumerate(parts)
        ]
        with no_autocast(padded[0]):
            return Lookup.of([self.turned_back(codes) for codes in padded], [part.penalty() for part in parts])


class OPQ(PQ):
    """As :class:`PQ` after a rotation, which learns by gradient to bring the latents close to their codes."""

    name = "opq"

    def __init__(self, dim: int, size: int, parts: int = 4, *, seed: int = 0, **options: Any) -> None:
        super().__init__(dim, size, parts, seed=seed, **options)
        # without a start of its own a rotation of independent axes would have nearly no gradient
        self.weight = nn.Parameter(0.1 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)))

    @property
    def rotation(self) -> Tensor:
        """Orthogonal [dim, dim]: the exponential of a skew-symmetric matrix."""
        return torch.matrix_exp(self.weight - self.weight.T)

    def turned(self, rows: Tensor) -> Tensor:
        return rows @ self.rotation

    def turned_back(self, rows: Tensor) -> Tensor:
        return rows @ self.rotation.T
