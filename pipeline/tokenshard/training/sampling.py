"""Drawing new samples from a masked token model, step by step from all hidden to all visible."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenshard.training.augment.draws import Draws
from tokenshard.training.heads.base import gumbel
from tokenshard.training.models.masked import MaskedModel

STEPS = 12


@torch.inference_mode()
def draw_codes(
    model: MaskedModel, count: int, draws: Draws, steps: int = STEPS, choice: float = 4.5, temperature: float = 1.0
) -> Tensor:
    """``count`` samples, ids int64 [count, L, *grid], in so many steps (MaskGIT, arXiv:2202.04200).

    Each step draws everything hidden and keeps the drawings of the highest likelihood, to which noise is added that
    fades from ``choice`` to 0; how much stays hidden follows a cosine. Heads that predict residual levels one by one
    keep the first levels of a position before those behind them (ResGen).
    """
    config = model.config.encoder
    levels, positions, (rows, columns) = len(config.alphabets), math.prod(config.positions), config.positions[-2:]
    grid = (*config.grid[:-2], rows * config.stride, columns * config.stride)
    depths = levels if model.head.by_level else 1
    ids = torch.zeros(count, levels, *grid, dtype=torch.int64, device=draws.device)
    kept = torch.zeros(count, positions, dtype=torch.int64, device=draws.device)
    for step in range(steps):
        drawn, score = _drawn(model, ids, kept, temperature, draws)
        noise = choice * (1 - (step + 1) / steps) * gumbel((count, positions, depths), draws.generator, draws.device)
        left = positions * depths * math.cos(math.pi / 2 * (step + 1) / steps)
        hidden = 0 if step == steps - 1 else max(1, math.floor(left))
        visible = kept * depths // levels
        after = _revealed(visible, score[..., None] + noise, positions * depths - hidden)
        ids = torch.where(model.by_code(kept)[:, None] > _level_of(ids), ids, drawn)
        kept = after * levels // depths
    return ids


def _level_of(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device).view(-1, *(1,) * (ids.ndim - 2))


def _drawn(model: MaskedModel, ids: Tensor, kept: Tensor, temperature: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """Ids whose hidden levels are drawn, and the mean log-likelihood [B, N] of the codes of each position."""
    everywhere = torch.arange(kept.shape[1], device=ids.device).expand(len(ids), -1)
    features = model.leave(model(ids, kept, everywhere))  # [B, N, covered, features]
    codes = model.codes_of(ids)
    known = kept[..., None].expand(codes.shape[:3])
    made, score = model.head.sample(
        features.flatten(0, 2), codes.flatten(0, 2), known.flatten(), temperature, draws.generator
    )
    return model.grid_of(made.view(codes.shape)), score.view(known.shape).mean(2)


def _revealed(visible: Tensor, score: Tensor, wanted: int) -> Tensor:
    """Visible depths [B, N] after the best of the hidden ones are shown, ``wanted`` in all; score [B, N, depths].

    A depth is never better than the one before it, so that the first ones of a position come first.
    """
    depth = torch.arange(score.shape[2], device=score.device)
    shown = depth < visible[..., None]
    score = torch.where(shown, torch.inf, score).cummin(2).values
    by_depth = score.transpose(1, 2).flatten(1)  # of equal scores the lower depth is taken
    best = by_depth.argsort(stable=True, dim=1, descending=True)[:, :wanted]
    chosen = torch.zeros_like(by_depth, dtype=torch.bool).scatter(1, best, True)
    return chosen.view(len(score), score.shape[2], -1).sum(1)
