"""Large images in tiles: how far a network sees, and the windows that give each tile all that it sees.

A tile is encoded with a halo of its surroundings, which is cut off again. Where the halo is as wide as the network
sees, the ids are those of the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from torch import nn

from tokenshard.tokenizers.conv_network import ResidualBlock, Upsample

_POINTWISE = (nn.Identity, nn.SiLU)


def reach(module: nn.Module) -> int | None:
    """Cells of its input beyond its own that a cell of its output depends on, along an axis; None: on all of them.

    An input cell is a pixel for an encoder, a token for a decoder. A coarser cell owns the cells it covers.
    """
    total, cell = Fraction(0), Fraction(1)
    for layer in _layers(module):
        if isinstance(layer, nn.PixelUnshuffle):
            cell *= layer.downscale_factor
        elif isinstance(layer, nn.PixelShuffle):
            cell /= layer.upscale_factor
        elif isinstance(layer, Upsample):
            cell /= 2
            total += cell
        elif isinstance(layer, nn.Conv2d):
            total += cell * (layer.kernel_size[0] // 2)
            cell *= layer.stride[0]
        elif not isinstance(layer, _POINTWISE):
            return None
    return math.ceil(total)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Layers in the order they are computed in, as far as that order is known."""
    if isinstance(module, nn.Sequential):
        for part in module:
            yield from _layers(part)
    elif isinstance(module, ResidualBlock):
        yield from (module.norm1, module.conv1, module.norm2, module.conv2)
    else:
        yield module


class Span(NamedTuple):
    """Part of an axis: what is read, and what is kept of it."""

    start: int
    stop: int
    low: int
    """of the part that is kept, counted from the start of the axis"""
    high: int

    def read(self, unit: int) -> slice:
        """What is read, on an axis whose cells are ``unit`` times finer."""
        return slice(self.start * unit, self.stop * unit)

    def kept(self, unit: int) -> slice:
        """Where what is kept goes."""
        return slice(self.low * unit, self.high * unit)

    def inside(self, unit: int) -> slice:
        """What is kept of what was read."""
        return slice((self.low - self.start) * unit, (self.high - self.start) * unit)


def spans(count: int, tile: int, halo: int) -> list[Span]:
    """An axis of ``count`` cells in parts of ``tile``, each with a halo as far as the axis goes."""
    return [
        Span(max(0, low - halo), min(count, low + tile + halo), low, min(count, low + tile))
        for low in range(0, count, tile)
    ]
