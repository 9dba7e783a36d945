"""Encoders as a user would have them: functions that make a module, images in [0, 1] -> features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallViT(nn.Module):
    """A vision transformer with random weights, patches of 8 pixels, 24 channels; some spread far more than others."""

    def __init__(self, seed: int = 0, patch: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Conv2d(3, 24, patch, patch)
        layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.5, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("scale", torch.logspace(0, -1.5, 24))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        tokens = self.layers(x.flatten(2).transpose(1, 2)) * self.scale
        return tokens.transpose(1, 2).reshape(x.shape)


def vit() -> nn.Module:
    return SmallViT()


def other_vit() -> nn.Module:
    return SmallViT(seed=1)


def vit14() -> nn.Module:
    return SmallViT(patch=14)


def flat() -> nn.Module:
    return nn.Flatten()


def number() -> int:
    return 3


READY = SmallViT()
