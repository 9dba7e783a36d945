"""`lfq` and `bsq`: the id is the string of signs of the latents; no codebook is looked up.

lfq: Yu et al. 2023 (arXiv:2310.05737). bsq: Zhao et al. 2024 (arXiv:2406.07548), latents on the unit sphere first.
Both are trained with an entropy loss: every latent should be sure of its code, and all codes should be used. It is
computed bit by bit, as in bsq: over all 2^dim codes the entropies of independent bits add up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.quantizers.base import Quantized, Quantizer, from_rows, no_autocast, straight_through, to_rows
from tokenshard.quantizers.distributed import mean_of_all

MOST_BITS = 16


class LFQ(Quantizer):
    """Signs of ``dim`` axes: 2^dim ids, bit i is set where axis i is positive.

    commitment: weight of the pull of the latents to ±scale; entropy: weight of the entropy loss, in which the entropy
    of the mean counts ``diversity`` times; temperature: of the probability of a bit.
    """

    name = "lfq"

    def __init__(
        self,
        dim: int,
        *,
        commitment: float = 0.25,
        entropy: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= dim <= MOST_BITS:
            raise SpecError(f"{self.name}: dim is the number of bits, 1 to {MOST_BITS}, not {dim}")
        self.dim, self.levels, self.seed = dim, (1 << dim,), seed
        self.commitment, self.entropy, self.diversity, self.temperature = commitment, entropy, diversity, temperature

    @property
    def scale(self) -> float:
        """Magnitude of the axes of quantized vectors."""
        return 1.0

    def prepared(self, rows: Tensor) -> Tensor:
        """Latents [N, dim] as they are quantized."""
        return rows

    def forward(self, z: Tensor) -> Quantized:
        with no_autocast(z):
            rows = self.prepared(to_rows(z))
            bits = rows > 0
            quantized = self._signs(bits)
            loss = self.commitment * functional.mse_loss(rows, quantized) + self.entropy * self._entropy_loss(rows)
            return Quantized(from_rows(straight_through(rows, quantized), z), from_rows(self._ids(bits), z), loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with no_autocast(z):
            return from_rows(self._ids(to_rows(z) > 0), z)

    def vectors(self, ids: Tensor) -> Tensor:
        places = torch.arange(self.dim, device=ids.device)
        return self._signs((ids[:, 0].long()[..., None] >> places) & 1 > 0).movedim(-1, 1)

    def options(self) -> dict[str, Any]:
        names = ("commitment", "entropy", "diversity", "temperature", "seed")
        return {"dim": self.dim, **{name: getattr(self, name) for name in names}}

    def exported(self) -> LFQ:
        return type(self)(self.dim)

    def _signs(self, bits: Tensor) -> Tensor:
        return (2.0 * bits.float() - 1.0) * self.scale

    def _ids(self, bits: Tensor) -> Tensor:
        return (bits.long() << torch.arange(self.dim, device=bits.device)).sum(1, keepdim=True)

    def _entropy_loss(self, rows: Tensor) -> Tensor:
        """Mean entropy of the bits of a latent, minus the entropy of the bits' mean: nats a bit."""
        share = torch.sigmoid(2 * self.scale * rows / self.temperature)
        return _entropy(share).mean() - self.diversity * _entropy(mean_of_all(share.mean(0))).mean()


class BSQ(LFQ):
    """As :class:`LFQ` with latents divided by their length: quantized vectors have length 1, the error is bounded."""

    name = "bsq"

    @property
    def scale(self) -> float:
        return float(self.dim**-0.5)

    def prepared(self, rows: Tensor) -> Tensor:
        return functional.normalize(rows, dim=1)


def _entropy(share: Tensor) -> Tensor:
    """Of bits that are set with these probabilities, in nats."""
    share = share.clamp(1e-6, 1 - 1e-6)
    return -(share * share.log() + (1 - share) * (1 - share).log())
