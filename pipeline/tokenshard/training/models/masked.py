"""Masked token modeling: an encoder that sees some positions, a decoder that predicts the codes of the hidden ones.

The encoder–decoder of MAE (He et al. 2022, arXiv:2111.06377) on tokens, as in MAGE (arXiv:2211.09117) and SeiT++
(arXiv:2312.10105). Nothing of a hidden code reaches the network: its vector is replaced by zeros before the stem, whose
kernel is its stride, and a learned vector says how many levels of the position are visible (none where all are, so that
an encoder goes on as it is in other models).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.spec.base import StoredDocument
from tokenshard.training.heads.base import Head, LevelHead
from tokenshard.training.heads.flat import TiedHead, VQLogitsHead
from tokenshard.training.heads.parallel import ParallelHead
from tokenshard.training.heads.summed import SummedHead
from tokenshard.training.heads.two_level import TwoLevelHead
from tokenshard.training.models.vit import EPS, Block, EncoderConfig, TokenEncoder, initialise, positions_of

FEATURES = 128
"""Features of a code that the head gets."""
LARGE_CODEBOOK = 4096
"""From so many codes on the two-level head is the default."""


class MaskedConfig(StoredDocument):
    """Everything that decides the shapes of an encoder and decoder."""

    encoder: EncoderConfig
    width: int = Field(ge=32, le=1 << 14, multiple_of=32, description="of the decoder")
    depth: int = Field(ge=1, le=64, description="of the decoder")
    head: Literal["tied", "two-level", "vq-logits", "summed"]
    clusters: tuple[int, ...] = Field(default=(), description="of each level, where the head has clusters")
    components: int = Field(default=8, ge=1, le=1024)


class MaskedModel(nn.Module):
    """Ids [B, L, (T,) H, W] with masks [B, N] -> features of every code, for :attr:`head`.

    clusters: int64 [V] of each level, for heads that need them (see :func:`cluster_codes`); while a model is loaded,
    any numbers of the right shape and range will do.
    """

    positions: Tensor

    def __init__(self, config: MaskedConfig, clusters: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.config = config
        self.encoder = TokenEncoder(config.encoder)
        levels, width = len(config.encoder.alphabets), config.width
        self.shown = nn.Parameter(torch.zeros(levels, config.encoder.width))
        self.enter = nn.Sequential(nn.LayerNorm(config.encoder.width, EPS), nn.Linear(config.encoder.width, width))
        self.register_buffer("positions", positions_of(config.encoder.positions, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, width // 32, config.encoder.dropout, 0.0) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, EPS)
        codes = config.encoder.covered
        self.leave = nn.Sequential(
            nn.Linear(width, codes * FEATURES),
            nn.Unflatten(-1, (codes, FEATURES)),
            nn.GELU(),
            nn.LayerNorm(FEATURES, EPS),
        )
        for part in (self.enter, self.blocks, self.leave):
            initialise(part)
        nn.init.normal_(self.shown, std=0.02)
        self.head = self._head(clusters)

    def _head(self, clusters: tuple[Tensor, ...]) -> Head:
        config, embedding = self.config, self.encoder.embedding
        levels = range(len(config.encoder.alphabets))
        if config.head == "summed":
            return SummedHead(FEATURES, embedding, config.components)
        made: list[LevelHead]
        if config.head == "tied":
            made = [TiedHead(FEATURES, embedding, level) for level in levels]
        elif config.head == "two-level":
            made = [TwoLevelHead(FEATURES, clusters[level]) for level in levels]
        else:
            made = [VQLogitsHead(FEATURES, clusters[level]) for level in levels]
        return ParallelHead(made)

    def forward(self, ids: Tensor, kept: Tensor, visible: Tensor) -> Tensor:
        """Hidden states [B, N, decoder width] of all positions.

        ids [B, L, (T,) H, W]; kept [B, N]: visible levels of a position; visible [B, n]: positions the encoder gets.
        """
        x = self.encoder.patches(self.encoder.embed(ids, self.by_code(kept)))
        x = x + functional.pad(self.shown, (0, 0, 0, 1))[kept].to(x.dtype)
        seen = visible[..., None].expand(-1, -1, x.shape[2])
        y = self.enter(self.encoder(x.gather(1, seen)))
        # what the encoder never saw is filled with the class token, which knows the sample as a whole
        full = y[:, :1].expand(-1, kept.shape[1], -1)
        full = full.scatter(1, visible[..., None].expand(-1, -1, y.shape[2]), y[:, 1:])
        full = full + self.positions
        for block in self.blocks:
            full = block(full)
        hidden: Tensor = self.norm(full)
        return hidden

    def by_code(self, per_position: Tensor) -> Tensor:
        """Numbers [B, N] of positions -> [B, *grid] of codes."""
        config = self.config.encoder
        grid = per_position.view(-1, *config.positions)
        if config.frames is not None:
            grid = grid.repeat_interleave(config.tubelet, 1)
        return grid.repeat_interleave(config.stride, -2).repeat_interleave(config.stride, -1)

    def codes_of(self, ids: Tensor) -> Tensor:
        """Ids [B, L, *grid] -> [B, N, covered, L]: the codes of each position."""
        config = self.config.encoder
        stride, tubelet = config.stride, config.tubelet
        batch, levels, *_, height, width = ids.shape
        parts = ids.view(batch, levels, -1, tubelet, height // stride, stride, width // stride, stride)
        return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, -1, config.covered, levels)

    def grid_of(self, codes: Tensor) -> Tensor:
        """The reverse of :meth:`codes_of`."""
        config = self.config.encoder
        stride, (*_, rows, columns) = config.stride, config.positions
        parts = codes.view(len(codes), -1, rows, columns, config.tubelet, stride, stride, codes.shape[3])
        parts = parts.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return parts.reshape(len(codes), codes.shape[3], *config.grid[:-2], rows * stride, columns * stride)

    def nll(self, hidden: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        """Nats of the hidden codes of each position that hides any, float32 [positions, covered].

        Positions that are visible as a whole take no part: neither loss nor gradient comes from them.
        """
        places = (kept < len(self.config.encoder.alphabets)).nonzero(as_tuple=True)
        features: Tensor = self.leave(hidden[places])
        codes = self.codes_of(ids)[places]
        known = kept[places][:, None].expand(codes.shape[:2])
        found = self.head.nll(features.flatten(0, 1), codes.flatten(0, 1), known.flatten())
        return found.view(codes.shape[:2])


def check_whole_positions(config: EncoderConfig) -> None:
    """Raises SpecError for an encoder that masks would leak through or leave codes over."""
    if config.stem != "patch":
        raise SpecError("masked token modeling needs stem `patch`: kernels of `overlap` reach into hidden positions")
    if any(side % config.stride for side in config.grid[-2:]):
        raise SpecError(
            f"a grid of {'x'.join(map(str, config.grid))} codes is no multiple of the stride {config.stride}; "
            "give another --stride, or --grid"
        )
