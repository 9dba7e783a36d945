"""Codes to vectors, on the device: what a pixel normalisation is to an image model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE_OF_NUMBERS = 10.0
"""Of the vectors of ordered ids, in that of random ones. Behind the first layer, whose weights begin small, they are as
large as the positions: smaller ones are drowned by these, and short trainings learn frequencies alone."""


class CodeEmbedding(nn.Module):
    """ids [B, L, *grid] -> vectors [B, d, *grid]. The vectors of the L levels of a place are added up (RVQ, PQ).

    frozen: the table is a buffer, to be filled with the tokenizer's codebooks; else it is learned.
    """

    table: Tensor
    first: Tensor

    def __init__(self, alphabets: Sequence[int], dim: int, frozen: bool) -> None:
        super().__init__()
        self.alphabets, self.dim = tuple(alphabets), dim
        table = torch.randn(sum(alphabets), dim) / len(self.alphabets) ** 0.5
        if frozen:
            self.register_buffer("table", table)
        else:
            self.table = nn.Parameter(table)
        first = torch.tensor([sum(alphabets[:level]) for level in range(len(alphabets))])
        self.register_buffer("first", first, persistent=False)

    def codebook(self, level: int) -> Tensor:
        """[alphabet, d] of a level."""
        start = sum(self.alphabets[:level])
        return self.table[start : start + self.alphabets[level]]

    def fill(self, codebooks: Sequence[Tensor]) -> None:
        """Take these vectors [alphabet, d], one tensor a level."""
        with torch.no_grad():
            self.table.copy_(torch.cat(list(codebooks)))

    def order(self, levels: Sequence[int]) -> None:
        """Begin these levels as numbers: sines and cosines of wavelengths from 4 ids to 4 times the alphabet. What lies
        close is alike."""
        for level in levels:
            size, pairs = self.alphabets[level], (self.dim + 1) // 2
            waves = 4 * torch.logspace(0, 1, pairs, base=float(size), dtype=torch.float64)
            angles = 2 * math.pi * torch.arange(size, dtype=torch.float64)[:, None] / waves
            both = torch.stack([angles.sin(), angles.cos()], 2).reshape(size, -1)[:, : self.dim]
            with torch.no_grad():
                self.codebook(level).copy_(SIZE_OF_NUMBERS * both * (2 / len(self.alphabets)) ** 0.5)

    def forward(self, ids: Tensor, kept: Tensor | None = None) -> Tensor:
        """``kept`` [B, *grid]: of each place only the first so many levels count; where it is 0 the vector is 0."""
        axes = (1,) * (ids.ndim - 2)
        vectors = functional.embedding(ids + self.first.view(-1, *axes), self.table)  # [B, L, *grid, d]
        if kept is not None:
            levels = torch.arange(len(self.alphabets), device=ids.device).view(-1, *axes)
            vectors = torch.where((levels < kept[:, None])[..., None], vectors, 0.0)
        return vectors.sum(1).movedim(-1, 1)
