"""What masked token modeling hides: schedules of mask ratios, and masks drawn with a ratio of its own for each sample.

A mask says how many levels of each position stay visible: 0 hides it, all of them show it. Of residual codes the
deepest levels are always hidden first, since a level means nothing without those before it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenshard.spec.training import MaskSpec
from tokenshard.training.augment.draws import Draws


class Masks(NamedTuple):
    """Masks of a batch of samples with N positions of L levels."""

    kept: Tensor
    """int64 [B, N]: visible levels of each position, 0 to L"""
    visible: Tensor
    """int64 [B, n]: the positions the encoder sees, in order; all others have 0 visible levels"""

    def at_times(self, times: int) -> Masks:
        """Masks of the places of a frame -> those of clips [B, times * N]: tubes, the same at all times (VideoMAE,
        arXiv:2203.12602). What does not move cannot be copied from the frame before."""
        first = self.kept.shape[1] * torch.arange(times, device=self.kept.device)
        return Masks(self.kept.repeat(1, times), (first[:, None] + self.visible[:, None]).flatten(1))


def mask_ratios(spec: MaskSpec, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratios of the schedule at quantiles drawn from [0, 1), never below ``spec.low``.

    truncated-normal: MAGE (arXiv:2211.09117); cosine: MaskGIT (arXiv:2202.04200); arccos: TiTok (arXiv:2406.07550).
    """
    if spec.schedule == "truncated-normal":
        edges = torch.tensor([spec.low - spec.mean, spec.high - spec.mean], dtype=torch.float64) / spec.std
        low, high = torch.special.ndtr(edges).tolist()
        normals: NDArray[np.float64] = torch.special.ndtri(torch.from_numpy(low + uniform * (high - low))).numpy()
        return np.clip(normals * spec.std + spec.mean, spec.low, spec.high)
    ratios = uniform
    if spec.schedule == "cosine":
        ratios = np.cos(uniform * math.pi / 2)
    elif spec.schedule == "arccos":
        ratios = np.arccos(uniform) * 2 / math.pi
    return np.maximum(ratios, spec.low)


def draw_masks(spec: MaskSpec, batch: int, positions: int, levels: int, by_level: bool, draws: Draws) -> Masks:
    """Masks of a batch.

    by_level: levels are hidden one by one (ResGen, arXiv:2412.10208): the hidden ones are shared out over the positions
    at random. Else a position is hidden or shown as a whole.
    """
    ratios = mask_ratios(spec, draws.random(batch))
    if by_level:
        count = np.clip(np.ceil(ratios * positions * levels), 1, positions * levels)
        rank = draws.uniform(batch, positions * levels).argsort(1).argsort(1)
        hidden = (rank < draws.tensor(count.astype(np.int64))[:, None]).view(batch, positions, levels)
        kept = levels - hidden.sum(2)
        return Masks(kept, torch.arange(positions, device=kept.device).expand(batch, -1))
    count = np.clip(np.ceil(ratios * positions), 1, positions)
    order = draws.uniform(batch, positions).argsort(1)
    hidden = order.argsort(1) < draws.tensor(count.astype(np.int64))[:, None]
    dropped = math.floor(spec.drop * positions)
    return Masks(levels * (~hidden).long(), order[:, dropped:].sort(1).values)
