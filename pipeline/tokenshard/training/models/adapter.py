"""Token adapter: codes of an image -> codes of the flipped or cropped image, without pixels.

The idea is TokenAdapt's (SeiT++, arXiv:2312.10105): codes become a map on which flipping, cropping and resizing mean
what they mean for pixels, and the map becomes codes again. Trained once, it is frozen and augments for any trainer.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokenshard.spec.base import StoredDocument
from tokenshard.training.augment.vectors import crop_and_resize
from tokenshard.training.heads.flat import TiedHead
from tokenshard.training.heads.parallel import ParallelHead
from tokenshard.training.models.embedding import CodeEmbedding
from tokenshard.training.models.vit import EPS, MOST_POSITIONS, Block, initialise, positions_2d

SCALE = 2
"""Places of the map along an axis of a code."""
HEAD_WIDTH = 32
"""Of an attention head."""


class AdapterConfig(StoredDocument):
    """Everything that decides the shapes of an adapter, and what it can do."""

    alphabets: tuple[int, ...] = Field(min_length=1, max_length=64, description="codes of each level")
    dim: int = Field(ge=1, le=1 << 16, description="channels of a code vector")
    embedding: Literal["frozen", "learned"]
    grid: tuple[int, int] = Field(description="rows and columns of codes")
    width: int = Field(ge=HEAD_WIDTH, le=1 << 12, multiple_of=HEAD_WIDTH)
    depth: int = Field(ge=1, le=16, description="blocks before the map, and as many behind it")
    channels: int = Field(ge=1, le=1 << 12, description="of the map")
    crops: bool = Field(description="whether it learned crops; flips it always did")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if min(self.grid) < 1 or self.grid[0] * self.grid[1] > MOST_POSITIONS:
            raise ValueError(f"{self.grid[0]}x{self.grid[1]} codes are more than an adapter may have")
        return self


class TokenAdapter(nn.Module):
    """Ids [B, L, H, W] -> ids of moved images [B, L, H, W]."""

    positions: Tensor

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        width, cells = config.width, config.channels * SCALE**2
        self.embedding = CodeEmbedding(config.alphabets, config.dim, config.embedding == "frozen")
        self.register_buffer("positions", positions_2d(*config.grid, width), persistent=False)
        self.enter, self.to_map = nn.Linear(config.dim, width), nn.Linear(width, cells)
        self.from_map = nn.Linear(cells, width)
        self.before, self.behind = (
            nn.Sequential(*(Block(width, width // HEAD_WIDTH) for _ in range(config.depth))) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width, EPS)
        for part in (self.enter, self.to_map, self.from_map, self.before, self.behind):
            initialise(part)
        self.head = ParallelHead(TiedHead(width, self.embedding, level) for level in range(len(config.alphabets)))

    def forward(self, ids: Tensor, flips: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Features [B, H * W, width] of the codes of moved images.

        boxes: int64 [B, 4], top, left, rows and columns of codes that are cut out and resized to the whole grid; then
        come flips: bool [B], left to right
        """
        rows, columns = self.config.grid
        x = self.enter(self.embedding(ids).flatten(2).transpose(1, 2)) + self.positions
        cells: Tensor = self.to_map(self.before(x))
        plane = cells.view(-1, rows, columns, self.config.channels, SCALE, SCALE).permute(0, 3, 1, 4, 2, 5)
        plane = plane.reshape(len(ids), self.config.channels, SCALE * rows, SCALE * columns)
        if boxes is not None:
            plane = crop_and_resize(plane, SCALE * boxes, (SCALE * rows, SCALE * columns))
        plane = torch.where(flips[:, None, None, None], plane.flip(3), plane)
        cells = plane.view(len(ids), -1, rows, SCALE, columns, SCALE).permute(0, 2, 4, 1, 3, 5)
        features: Tensor = self.norm(self.behind(self.from_map(cells.reshape(*x.shape[:2], -1)) + self.positions))
        return features

    def nll(self, features: Tensor, wanted: Tensor) -> Tensor:
        """Nats of the wanted ids [B, L, H, W], float32 [B * H * W]: those of all levels together."""
        rows = wanted.flatten(2).transpose(1, 2).flatten(0, 1)
        return self.head.nll(features.flatten(0, 1), rows, torch.zeros_like(rows[:, 0]))

    @torch.no_grad()
    def moved(self, ids: Tensor, flips: Tensor, boxes: Tensor | None = None) -> Tensor:
        """The likeliest ids of moved images; ``flips`` and ``boxes`` as for :meth:`forward`."""
        rows = self.head.likeliest(self(ids, flips, boxes).flatten(0, 1))
        return rows.view(len(ids), -1, ids.shape[1]).transpose(1, 2).reshape(ids.shape)
