"""Clips of videos for training: decoded once into memory, drawn like the crops of images."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenshard.errors import SpecError
from tokenshard.training.crops import PixelPool


class Held(Protocol):
    """What a training holds in memory."""

    def __len__(self) -> int: ...

    def to(self, device: str | torch.device) -> Self: ...

    def checksum(self) -> int: ...


class Pool(Held, Protocol):
    """What training draws pictures from: images (:class:`~.crops.PixelPool`), or clips."""

    def draw(
        self, count: int, side: int, scale: tuple[float, float], seed: int, step: int, part: slice = slice(None)
    ) -> Tensor: ...

    def centres(self, side: int, most: int) -> Tensor: ...


class ClipPool:
    """Clips of any lengths and sizes, of which ``span`` frames are drawn; of shorter ones the last repeats."""

    def __init__(self, frames: PixelPool, lengths: NDArray[np.int64], span: int) -> None:
        self._frames, self._lengths, self._span = frames, lengths, span
        self._first = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        pixels = lengths * frames.heights[self._first] * frames.widths[self._first]
        self._shares = np.cumsum(pixels / pixels.sum())

    @classmethod
    def of(cls, clips: Iterable[NDArray[np.uint8]], span: int) -> ClipPool:
        """Of clips uint8 [frames, height, width, 3]."""
        held = list(clips)
        if not held:
            raise SpecError("there are no clips to train on")
        return cls(PixelPool.of(chain.from_iterable(held)), np.array([len(clip) for clip in held], np.int64), span)

    def __len__(self) -> int:
        return len(self._lengths)

    def to(self, device: str | torch.device) -> ClipPool:
        """The same pool with its pixels on a device."""
        return ClipPool(self._frames.to(device), self._lengths, self._span)

    def checksum(self) -> int:
        """A number that differs where frames do."""
        return self._frames.checksum()

    def draw(
        self, count: int, side: int, scale: tuple[float, float], seed: int, step: int, part: slice = slice(None)
    ) -> Tensor:
        """As :meth:`PixelPool.draw`, of successive frames: float32 [count, 3, span, side, side] in [-1, 1].

        A clip is cut, resized and turned as a whole; it never runs backwards.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        cut = max(1, round(side * float(np.exp(rng.uniform(*np.log(scale))))))
        chosen = np.minimum(np.searchsorted(self._shares, rng.random(count)), len(self) - 1)
        start = np.floor(rng.random(count) * np.maximum(1, self._lengths[chosen] - self._span + 1)).astype(np.int64)
        squares = self._frames.squares(rng, self._first[chosen], cut)
        places = self._places(chosen[part], start[part])
        return self._joined(self._frames.crops(places, squares.of(part, self._span), cut, side))

    def centres(self, side: int, most: int) -> Tensor:
        """Windows in the middle of the first frames of at most ``most`` clips, spread evenly: uint8 [n, 3, span, …]."""
        chosen = np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(np.int64)
        return self._joined(self._frames.middles(self._places(chosen, np.zeros_like(chosen)), side))

    def _places(self, chosen: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of ``span`` frames of each clip, from ``start`` of it on: [n * span]."""
        inside = np.minimum(start[:, None] + np.arange(self._span), self._lengths[chosen][:, None] - 1)
        places: NDArray[np.int64] = self._first[chosen][:, None] + inside
        return places.reshape(-1)

    def _joined(self, frames: Tensor) -> Tensor:
        """[n * span, 3, side, side] -> [n, 3, span, side, side]."""
        return frames.reshape(-1, self._span, *frames.shape[1:]).transpose(1, 2).contiguous()
