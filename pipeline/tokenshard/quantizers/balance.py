"""Balanced assignment: prices of the codes at which all of them are chosen equally often.

Entropic optimal transport (Cuturi 2013, arXiv:1306.0895) between latents and codes, as RepCONC uses it to train product
quantization (Zhan et al. 2022, arXiv:2110.05789). The dual variables of the codes are prices that are added to squared
distances, so the search for the nearest code stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenshard.quantizers.distributed import rank_and_world, summed

ROUNDS = 10
_CHUNK = 1 << 24
"""Distances held at a time."""


@torch.no_grad()
def balancing_prices(rows: Tensor, codes: Tensor, temperature: float, rounds: int = ROUNDS) -> Tensor:
    """float32 [K]: what to add to the squared distances of latents [N, d] to codes [K, d].

    temperature: of the soft assignment that is balanced in the last round, in multiples of the typical (geometric mean)
    difference between a latent's smallest and second smallest squared distance. The first round has the standard
    deviation of its distances for a temperature, and those between go down evenly in the logarithm.
    """
    step = max(1, _CHUNK // len(codes))
    total = len(rows) * rank_and_world()[1]
    sizes = [_sizes(_distances(part, codes)) for part in torch.split(rows, step)]
    widest, gap = summed(torch.stack(sizes).sum(0))[0] / total
    widest, narrowest = widest.clamp_min(1e-30), (temperature * gap.exp()).clamp_min(1e-30)
    prices = torch.zeros(len(codes), device=rows.device)
    for done in range(rounds):
        scale = widest * (narrowest / widest) ** ((done + 1) / rounds)
        mass = torch.zeros_like(prices)
        for part in torch.split(rows, step):
            mass += torch.softmax(-(_distances(part, codes) + prices) / scale, 1).sum(0)
        share = summed(mass)[0] * (len(codes) / total)
        prices += scale * share.clamp_min(1e-30).log()
    return prices


def _distances(rows: Tensor, codes: Tensor) -> Tensor:
    """Squared ones [N, K], less the squared length of the latent."""
    return torch.addmm(codes.square().sum(1), rows, codes.T, alpha=-2)


def _sizes(distances: Tensor) -> Tensor:
    """Sums over latents [2]: of the standard deviation; of the logarithm of the second smallest less the smallest."""
    least, second = distances.topk(2, 1, largest=False).values.unbind(1)
    return torch.stack([distances.std(1).sum(), (second - least).clamp_min(1e-30).log().sum()])
