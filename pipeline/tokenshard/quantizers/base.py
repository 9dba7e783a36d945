"""The quantizer contract: latent vectors ⇄ ids. Stands inside a tokenizer, between its encoder and its decoder.

Latents are [B, dim, *grid], ids [B, levels, *grid], as everywhere in tokenshard. All arithmetic is float32 or integer,
also inside ``torch.autocast``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer answers."""

    vectors: Tensor
    """float32 [B, dim, *grid]; gradients pass straight through to the latents (Bengio et al. 2013)"""
    ids: Tensor
    """int64 [B, levels, *grid]; ids of level i are in [0, levels[i])"""
    loss: Tensor
    """float32 scalar to be added to the loss of the reconstruction; 0 where the method has none"""


class Quantizer(nn.Module, ABC):
    """Base of all quantizers. ``name`` is the registered one; ``levels`` are the alphabet sizes."""

    name: ClassVar[str]
    dim: int
    levels: tuple[int, ...]

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Quantize latents [B, dim, *grid]. In training mode codebooks may move."""

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Ids [B, levels, *grid] of latents; equal latents give equal ids on any device and in any batch."""

    @abstractmethod
    def vectors(self, ids: Tensor) -> Tensor:
        """float32 [B, dim, *grid] that ids [B, levels, *grid] stand for. Ids must be in range."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments that make this quantizer again, JSON-able."""

    @abstractmethod
    def exported(self) -> Quantizer:
        """An equal quantizer that holds nothing but what encoding and decoding need, without gradients."""


def to_rows(z: Tensor) -> Tensor:
    """[B, dim, *grid] -> float32 [N, dim]."""
    return z.movedim(1, -1).reshape(-1, z.shape[1]).float()


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """[N, n] -> [B, n, *grid] with the batch and grid of ``like`` [B, any, *grid]."""
    return rows.reshape(like.shape[0], *like.shape[2:], rows.shape[1]).movedim(-1, 1)


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` forward, the gradient of ``z`` backward."""
    return z + (quantized - z).detach() if z.requires_grad else quantized


def no_autocast(z: Tensor) -> torch.autocast:
    """A context in which float32 stays float32 on the device of ``z``."""
    return torch.autocast(z.device.type, enabled=False)
