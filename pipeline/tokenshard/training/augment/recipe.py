"""The augmentations of a job, put together: ids [B, L, (T,) H, W] -> ids, vectors -> vectors, mixtures with targets.

What several samples of a batch have to do with each other is the same however many processes share the batch: these
exchange ids (2 bytes a code would do) and means, never vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.quantizers.distributed import rank_and_world, rows_of_all
from tokenshard.spec.training import AugmentSpec
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.ids import replace_by_synonyms, swap_squares, synonym_table
from tokenshard.training.augment.vectors import (
    adapt_color,
    add_noise,
    by_sample,
    colors,
    crop_and_resize,
    cutmix_boxes,
    mix_boxes,
    random_boxes,
    resize,
)
from tokenshard.training.models.adapter import TokenAdapter

Boxes = NDArray[np.int64]


class Augmentation(nn.Module):
    """What :class:`AugmentSpec` says, for vectors of ``grid`` (others are resized).

    codebooks: [K, d] a level, for the synonyms; adapter: for flips, and for crops where it learned some
    """

    def __init__(
        self,
        spec: AugmentSpec,
        grid: tuple[int, ...],
        codebooks: Sequence[Tensor],
        adapter: TokenAdapter | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.grid, self.adapter = spec, grid, adapter
        self.levels = len(codebooks) if spec.synonyms else 0
        for level in range(self.levels):
            table = synonym_table(codebooks[level], spec.neighbours)
            self.register_buffer(f"synonyms_{level}", table, persistent=False)

    def ids(self, ids: Tensor, draws: Draws) -> tuple[Tensor, Boxes | None]:
        """Token-EDA (a sample gets synonyms, or a swap, or nothing), then TokenAdapt; and the crops left to be done."""
        spec = self.spec
        if spec.synonyms or spec.swap:
            ids = self._edited(ids, draws)
        boxes = None
        if spec.crop_scale != (1.0, 1.0):
            size = (ids.shape[-2], ids.shape[-1])
            boxes = random_boxes(len(ids), size, spec.crop_scale, spec.crop_ratio, draws)
        return (ids, boxes) if self.adapter is None else self._adapted(self.adapter, ids, boxes, draws)

    def _edited(self, ids: Tensor, draws: Draws) -> Tensor:
        spec = self.spec
        kind = draws.random(len(ids))
        if spec.synonyms:
            tables = [self.get_buffer(f"synonyms_{level}") for level in range(self.levels)]
            ids = replace_by_synonyms(ids, tables, spec.synonym_share, draws.tensor(kind < spec.synonyms), draws)
        if spec.swap:
            swapped = (kind >= spec.synonyms) & (kind < spec.synonyms + spec.swap)
            ids = swap_squares(ids, spec.swap_side, draws.tensor(swapped), draws)
        return ids

    def _adapted(
        self, adapter: TokenAdapter, ids: Tensor, boxes: Boxes | None, draws: Draws
    ) -> tuple[Tensor, Boxes | None]:
        """Some samples become ids of their flipped image; with an adapter that learned it, of a crop of it."""
        batch = len(ids)
        crops = boxes is not None and adapter.config.crops
        flips = (draws.random(batch) < 0.5) | (not crops)
        chosen = np.flatnonzero(draws.random(batch) < self.spec.adapt_share)
        if not len(chosen):
            return ids, boxes
        place = draws.tensor(chosen)
        cut = None
        if crops and boxes is not None:
            cut, boxes = draws.tensor(boxes[chosen]), boxes.copy()
            boxes[chosen] = (0, 0, ids.shape[2], ids.shape[3])
        return ids.index_copy(0, place, adapter.moved(ids[place], draws.tensor(flips[chosen]), cut)), boxes

    def vectors(self, vectors: Tensor, boxes: Boxes | None, draws: Draws) -> Tensor:
        """Crop, colours and noise; in the end [B, d, *grid]."""
        spec, batch = self.spec, len(vectors)
        if boxes is not None:
            vectors = crop_and_resize(vectors, draws.tensor(boxes), self.grid)
        else:
            vectors = resize(vectors, self.grid)
        if spec.color_adapt:
            own = draws.tensor(np.arange(draws.first, draws.first + batch))
            others = rows_of_all(colors(vectors).detach()).flip(0)  # first and last, second and last but one, ...
            vectors = adapt_color(vectors, draws.chosen(batch, spec.color_adapt), others[own])
        if spec.noise:
            vectors = add_noise(vectors, draws.chosen(batch, spec.noise), spec.noise_scale, draws)
        return vectors

    def mixtures(
        self, ids: Tensor, targets: Tensor, embed: Callable[[Tensor], Tensor], draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Augmented vectors [B, d, *grid] of ids, and their target probabilities [B, classes].

        Where samples are mixed, the other one of each is any of the batch of all processes, in a view of its own.
        """
        vectors = self._augmented(ids, embed, draws)
        if not (self.spec.cutmix or self.spec.mixup):
            return vectors, targets
        everyone = draws.rng.permutation(len(ids) * rank_and_world()[1])
        partner = draws.tensor(everyone[draws.first : draws.first + len(ids)])
        others = self._augmented(rows_of_all(ids)[partner], embed, draws.other_view())
        return self.mixed(vectors, targets, others, rows_of_all(targets)[partner], draws)

    def _augmented(self, ids: Tensor, embed: Callable[[Tensor], Tensor], draws: Draws) -> Tensor:
        ids, boxes = self.ids(ids, draws)
        return self.vectors(embed(ids), boxes, draws)

    def mixed(
        self, vectors: Tensor, targets: Tensor, others: Tensor, other_targets: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """CutMix or Mixup of vectors [B, d, *grid] and target probabilities [B, classes] with those of others."""
        spec, batch = self.spec, len(vectors)
        use_cutmix = bool(spec.cutmix) and (not spec.mixup or draws.rng.random() < 0.5)
        share = draws.beta(spec.cutmix if use_cutmix else spec.mixup, batch)
        if use_cutmix:
            boxes = cutmix_boxes(share, (self.grid[-2], self.grid[-1]), draws)
            vectors, own = mix_boxes(vectors, others, draws.tensor(boxes))
        else:
            own = draws.tensor(share)
            vectors = torch.lerp(others, vectors, by_sample(own, vectors))
        return vectors, torch.lerp(other_targets, targets, own[:, None])


def smoothed_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """float32 [B, classes]: 1 - smoothing on the label, and smoothing spread over all classes (Szegedy et al. 2016)."""
    return functional.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
