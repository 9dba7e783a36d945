"""The summed-embedding head for residual codes: not ids are predicted but the sum of the vectors of the hidden levels
(ResGen, arXiv:2412.10208), as a mixture of normal distributions. Its cost grows neither with levels nor with codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.quantizers.search import nearest
from tokenshard.training.heads.base import Head, gumbel, in_parts
from tokenshard.training.models.embedding import CodeEmbedding
from tokenshard.training.models.vit import initialise

SMALLEST_LOG_DEVIATION = -5.0
"""Of a component, where the codebook has unit variance: a density has no upper bound, the loss has a lower one."""


class SummedHead(Head):
    """-log p of the sum of the hidden levels' vectors under ``components`` isotropic normal distributions."""

    by_level = True

    def __init__(self, features: int, embedding: CodeEmbedding, components: int) -> None:
        super().__init__()
        self.dim, self.components = embedding.dim, components
        self.linear = nn.Linear(features, components * (embedding.dim + 2))
        self._source = (embedding,)  # in a tuple: a part of the encoder, not of this module
        initialise(self)
        with torch.no_grad():  # equal components would stay equal
            self.linear.bias[: components * self.dim].normal_(std=0.5)

    def nll(self, features: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        return in_parts(self._nll, 3 * self.components * self.dim, features, self.targets(ids, kept))

    def targets(self, ids: Tensor, kept: Tensor) -> Tensor:
        """float32 [M, d]: the sum of the vectors of the levels from ``kept`` on."""
        embedding = self._source[0]
        levels = [
            torch.where((kept <= level)[:, None], embedding.codebook(level)[ids[:, level]], 0.0)
            for level in range(ids.shape[1])
        ]
        return torch.stack(levels).sum(0)

    def mixture(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means [M, C, d], log deviations [M, C] and log weights [M, C], all float32."""
        found = self.linear(features).float()
        means, deviations, weights = found.split([self.components * self.dim, self.components, self.components], 1)
        deviations = SMALLEST_LOG_DEVIATION + functional.softplus(deviations - SMALLEST_LOG_DEVIATION)
        return means.unflatten(1, (self.components, self.dim)), deviations, weights.log_softmax(1)

    def _nll(self, features: Tensor, z: Tensor) -> Tensor:
        means, deviations, weights = self.mixture(features)
        distance = (z[:, None] - means).square().sum(2)
        log_p = -0.5 * distance * (-2 * deviations).exp() - self.dim * (deviations + 0.5 * math.log(2 * math.pi))
        return -(weights + log_p).logsumexp(1)

    def expected(self, features: Tensor) -> Tensor:
        """The mean of the mixture, [M, d]."""
        means, _, weights = self.mixture(features)
        return (means * weights.exp()[..., None]).sum(1)

    def quantized(self, z: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        """Ids [M, L]: the first ``kept`` levels as they are, then ``z`` [M, d] quantised level by level."""
        embedding, rest, made = self._source[0], z, []
        for level in range(ids.shape[1]):
            codebook = embedding.codebook(level)
            hidden = kept <= level
            found = torch.where(hidden, nearest(rest, codebook, codebook.new_zeros(len(codebook))), ids[:, level])
            rest = torch.where(hidden[:, None], rest - codebook[found], rest)
            made.append(found)
        return torch.stack(made, 1)

    def sample(
        self, features: Tensor, ids: Tensor, kept: Tensor, temperature: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        means, deviations, weights = self.mixture(features)
        chosen = (weights + temperature * gumbel(weights.shape, generator, weights.device)).argmax(1)
        row = torch.arange(len(means), device=means.device)
        noise = torch.randn((len(means), self.dim), generator=generator, device=means.device)
        z = means[row, chosen] + temperature * deviations[row, chosen].exp()[:, None] * noise
        made = self.quantized(z, ids, kept)
        return made, -self._nll(features, self.targets(made, kept))
