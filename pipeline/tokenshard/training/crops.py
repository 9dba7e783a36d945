"""Random crops for training on raw images. Images are decoded once into one flat array, which may live on the GPU.

Which crops a step gets is a pure function of (seed, step): training can be resumed anywhere, and nothing is queued.
Cropping, resizing and flipping happen on the device that holds the pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.tokenizers.conv_network import to_signed


class Squares(NamedTuple):
    """Where crops are taken, and how they are turned."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    turns: NDArray[np.bool_]
    """[3, n]: flipped upside down, flipped left and right, transposed"""

    def of(self, part: slice, times: int = 1) -> Squares:
        """Those of a part, each so many times."""
        return Squares(
            np.repeat(self.top[part], times), np.repeat(self.left[part], times), self.turns[:, part].repeat(times, 1)
        )


class PixelPool:
    """Decoded images of any sizes, one after the other in a flat uint8 tensor."""

    def __init__(self, pixels: Tensor, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> None:
        self.pixels, self.heights, self.widths = pixels, heights, widths
        self._first = np.concatenate([[0], np.cumsum(3 * heights * widths)])
        areas = heights * widths
        self._areas = np.cumsum(areas / areas.sum())

    @classmethod
    def of(cls, images: Iterable[NDArray[np.uint8]], limit: int | None = None) -> PixelPool:
        """Of images uint8 [height, width, 3]; stops before the one that would make more than ``limit`` bytes."""
        flat: list[NDArray[np.uint8]] = []
        sizes: list[tuple[int, int]] = []
        held = 0
        for image in images:
            held += image.nbytes
            if limit is not None and held > limit and flat:
                break
            flat.append(np.ascontiguousarray(image).reshape(-1))
            sizes.append((image.shape[0], image.shape[1]))
        if not flat:
            raise SpecError("there are no images to train on")
        heights, widths = np.array(sizes, np.int64).T
        return cls(torch.from_numpy(np.concatenate(flat)), heights, widths)

    def __len__(self) -> int:
        return len(self.heights)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image ``index``: uint8 [height, width, 3]."""
        flat = self.pixels[self._first[index] : self._first[index + 1]].cpu().numpy()
        return flat.reshape(self.heights[index], self.widths[index], 3)

    def to(self, device: str | torch.device) -> PixelPool:
        """The same pool with its pixels on a device."""
        return PixelPool(self.pixels.to(device), self.heights, self.widths)

    def checksum(self) -> int:
        """A number that differs where images do: the sum of their pixels."""
        return int(self.pixels.sum(dtype=torch.int64))

    def draw(
        self, count: int, side: int, scale: tuple[float, float], seed: int, step: int, part: slice = slice(None)
    ) -> Tensor:
        """Those of ``part`` of ``count`` random crops of ``step``: float32 [count, 3, side, side] in [-1, 1].

        Images are drawn in proportion to their pixels. A step resizes its crops by one factor drawn log-uniformly from
        ``scale``: the crops cover ``side * factor`` pixels of the image. Crops are flipped and transposed at random.
        What lies beyond the edge of an image is mirrored.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        cut = max(1, round(side * float(np.exp(rng.uniform(*np.log(scale))))))
        chosen = np.minimum(np.searchsorted(self._areas, rng.random(count)), len(self) - 1)
        squares = self.squares(rng, chosen, cut)
        return self.crops(chosen[part], squares.of(part), cut, side)

    def squares(self, rng: np.random.Generator, chosen: NDArray[np.int64], cut: int) -> Squares:
        """Random squares of ``cut`` pixels, one in each of the chosen images."""
        top, left = (
            np.floor(rng.random(len(chosen)) * np.maximum(1, sides[chosen] - cut + 1)).astype(np.int64)
            for sides in (self.heights, self.widths)
        )
        return Squares(top, left, rng.integers(0, 2, (3, len(chosen))).astype(bool))

    def crops(self, chosen: NDArray[np.int64], squares: Squares, cut: int, side: int) -> Tensor:
        """Squares of ``cut`` pixels of images, resized to ``side``: float32 [B, 3, side, side] in [-1, 1]."""
        crops = to_signed(self._gather(chosen, squares.top, squares.left, cut))
        turns = torch.from_numpy(squares.turns)
        if cut != side:
            crops = functional.interpolate(crops, (side, side), mode="bicubic", antialias=cut > side).clamp_(-1, 1)
        for axis, mask in zip((2, 3), turns, strict=False):
            crops = torch.where(mask.to(crops.device)[:, None, None, None], crops.flip(axis), crops)
        return torch.where(turns[2].to(crops.device)[:, None, None, None], crops.transpose(2, 3), crops)

    def centres(self, side: int, most: int) -> Tensor:
        """Windows in the middle of at most ``most`` images, spread evenly over the pool: uint8 [n, 3, side, side]."""
        return self.middles(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(np.int64), side)

    def middles(self, chosen: NDArray[np.int64], side: int) -> Tensor:
        """Windows in the middle of the chosen images: uint8 [n, 3, side, side]."""
        top = np.maximum(0, self.heights[chosen] - side) // 2
        left = np.maximum(0, self.widths[chosen] - side) // 2
        return self._gather(chosen, top, left, side)

    def _gather(self, chosen: NDArray[np.int64], top: NDArray[np.int64], left: NDArray[np.int64], cut: int) -> Tensor:
        """Squares of ``cut`` pixels at those places: uint8 [B, 3, cut, cut]."""
        numbers = np.stack([self._first[chosen], top, left, self.heights[chosen], self.widths[chosen]])
        device = self.pixels.device
        first, top_, left_, heights, widths = torch.from_numpy(numbers).to(device, non_blocking=True)[..., None]
        along = torch.arange(cut, device=device)
        rows, columns = _mirrored(top_ + along, heights), _mirrored(left_ + along, widths)
        places = first[..., None] + 3 * (rows[:, :, None] * widths[..., None] + columns[:, None, :])
        return self.pixels[places[:, None] + torch.arange(3, device=device)[:, None, None]]


def _mirrored(place: Tensor, size: Tensor) -> Tensor:
    """Places [B, n] reflected into [0, size) for sizes [B, 1]; the edge itself is not repeated."""
    period = (2 * size - 2).clamp_min(1)
    folded = place % period
    return torch.where(folded < size, folded, period - folded)
