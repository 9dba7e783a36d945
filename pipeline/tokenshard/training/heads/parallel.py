"""The depth-parallel head: every level of a place is predicted on its own, all from the same features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from tokenshard.training.heads.base import Head, LevelHead


class ParallelHead(Head):
    """One :class:`LevelHead` a level. With one level it is that head."""

    def __init__(self, levels: Iterable[LevelHead]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def nll(self, features: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        parts = [cast(LevelHead, head).nll(features, ids[:, level]) for level, head in enumerate(self.levels)]
        return torch.stack(parts).sum(0)

    def likeliest(self, features: Tensor) -> Tensor:
        """Ids [M, L], of each level the likeliest one."""
        return torch.stack([cast(LevelHead, head).likeliest(features) for head in self.levels], 1)

    def sample(
        self, features: Tensor, ids: Tensor, kept: Tensor, temperature: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        drawn = [cast(LevelHead, head).sample(features, temperature, generator) for head in self.levels]
        return torch.stack([ids for ids, _ in drawn], 1), torch.stack([score for _, score in drawn]).sum(0)
