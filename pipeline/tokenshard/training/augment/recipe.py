"""The augmentations of a job, put together: ids [B, L, H, W] -> ids, vectors -> vectors, and mixtures with targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.spec.training import AugmentSpec
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.ids import replace_by_synonyms, swap_squares, synonym_table
from tokenshard.training.augment.vectors import (
    adapt_color,
    add_noise,
    crop_and_resize,
    cutmix_boxes,
    mix_boxes,
    random_boxes,
    resize,
)


class Augmentation(nn.Module):
    """What :class:`AugmentSpec` says, for vectors of ``grid`` (others are resized).

    codebooks: [K, d] a level, for the synonyms.
    """

    def __init__(self, spec: AugmentSpec, grid: tuple[int, int], codebooks: Sequence[Tensor]) -> None:
        super().__init__()
        self.spec, self.grid = spec, grid
        self.levels = len(codebooks) if spec.synonyms else 0
        for level in range(self.levels):
            table = synonym_table(codebooks[level], spec.neighbours)
            self.register_buffer(f"synonyms_{level}", table, persistent=False)

    def ids(self, ids: Tensor, draws: Draws) -> Tensor:
        """Token-EDA: a sample gets synonyms, or a swap, or nothing."""
        spec = self.spec
        if not spec.synonyms and not spec.swap:
            return ids
        kind = draws.rng.random(len(ids))
        if spec.synonyms:
            tables = [self.get_buffer(f"synonyms_{level}") for level in range(self.levels)]
            ids = replace_by_synonyms(ids, tables, spec.synonym_share, draws.tensor(kind < spec.synonyms), draws)
        if spec.swap:
            swapped = (kind >= spec.synonyms) & (kind < spec.synonyms + spec.swap)
            ids = swap_squares(ids, spec.swap_side, draws.tensor(swapped), draws)
        return ids

    def vectors(self, vectors: Tensor, draws: Draws) -> Tensor:
        """Crop, colours and noise; in the end [B, d, *grid]."""
        spec, batch = self.spec, len(vectors)
        if spec.crop_scale != (1.0, 1.0):
            size = (vectors.shape[2], vectors.shape[3])
            boxes = random_boxes(batch, size, spec.crop_scale, spec.crop_ratio, draws)
            vectors = crop_and_resize(vectors, draws.tensor(boxes), self.grid)
        else:
            vectors = resize(vectors, self.grid)
        if spec.color_adapt:
            partner = torch.arange(batch - 1, -1, -1, device=vectors.device)
            vectors = adapt_color(vectors, draws.chosen(batch, spec.color_adapt), partner)
        if spec.noise:
            vectors = add_noise(vectors, draws.chosen(batch, spec.noise), spec.noise_scale, draws)
        return vectors

    def mixed(self, vectors: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """CutMix or Mixup of vectors [B, d, H, W] and of target probabilities [B, classes]."""
        spec, batch = self.spec, len(vectors)
        use_cutmix = bool(spec.cutmix) and (not spec.mixup or draws.rng.random() < 0.5)
        alpha = spec.cutmix if use_cutmix else spec.mixup
        if not alpha:
            return vectors, targets
        share = draws.rng.beta(alpha, alpha, batch)
        partner = draws.tensor(draws.rng.permutation(batch))
        if use_cutmix:
            boxes = cutmix_boxes(share, self.grid, draws)
            vectors, own = mix_boxes(vectors, partner, draws.tensor(boxes))
        else:
            own = draws.tensor(np.asarray(share))
            vectors = torch.lerp(vectors[partner], vectors, own[:, None, None, None])
        return vectors, torch.lerp(targets[partner], targets, own[:, None])


def smoothed_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """float32 [B, classes]: 1 - smoothing on the label, and smoothing spread over all classes (Szegedy et al. 2016)."""
    return functional.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
