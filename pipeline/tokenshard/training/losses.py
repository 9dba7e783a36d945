"""The loss of a reconstruction, and the learning rate of a step."""

from __future__ import annotations

import math

from torch import Tensor

from tokenshard.spec.recipe import Losses, RecipeFields


def reconstruction_loss(made: Tensor, images: Tensor, losses: Losses) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The weighted loss of float images [B, 3, H, W] or clips, and mean |error| and error² without gradient."""
    error = made - images
    l1, l2 = error.abs().mean(), error.square().mean()
    loss = losses.l1 * l1 + losses.l2 * l2
    if losses.gradient:
        loss = loss + losses.gradient * (error.diff(dim=-2).abs().mean() + error.diff(dim=-1).abs().mean())
    return loss, (l1.detach(), l2.detach())


def learning_rate(recipe: RecipeFields, step: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth; a second, lower one for the decoder alone."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    start, end, top = recipe.warmup, recipe.frozen_from, 1.0
    if step >= recipe.frozen_from:
        start, end, top = recipe.frozen_from, recipe.steps, 0.5
    place = (step - start) / max(1, end - start)
    return recipe.lr * (0.01 + (top - 0.01) * 0.5 * (1 + math.cos(math.pi * min(1.0, place))))
