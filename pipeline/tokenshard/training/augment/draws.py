"""Randomness of a training step: a pure function of (seed, step, row of the batch), so that a run can go on anywhere.

The rows are those of the batch of all processes together. Each process draws for its own, so what a sample is given
does not depend on how many processes share a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS = 32
"""Rows that share a generator."""


class _Block(NamedTuple):
    host: np.random.Generator
    device: torch.Generator


class Draws:
    """Random numbers of one step. Few numbers a sample are drawn on the host, many on the device.

    first: number of this process's first row in the batch; its other rows follow
    view: where a sample takes part twice, another number gives it other draws
    """

    def __init__(self, seed: int, step: int, device: torch.device | str = "cpu", first: int = 0, view: int = 0) -> None:
        self.device = torch.device(device)
        self.first = first
        self.step = step
        self._place = (seed, step, view)
        self._blocks: dict[int, _Block] = {}
        self.rng = self._host(0)
        """for what the rows have in common: the same in all processes"""
        word = int(self.rng.integers(1 << 62))
        self.word = word ^ first
        """a seed for everything else that is random in the step, e.g. dropout; each process has another one"""
        self.generator = torch.Generator(self.device).manual_seed(self.word ^ (1 << 61))

    def other_view(self) -> Draws:
        """Draws for the same rows that are independent of these."""
        seed, step, view = self._place
        return Draws(seed, step, self.device, self.first, view + 1)

    def tensor(self, values: NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_]) -> Tensor:
        """Numbers of the host on the device; floating point ones as float32."""
        host = torch.from_numpy(values.astype(np.float32) if values.dtype.kind == "f" else values)
        return host.to(self.device, non_blocking=True)

    def random(self, *shape: int) -> NDArray[np.float64]:
        """Numbers in [0, 1) on the host; the last axis are the rows."""
        *rest, count = shape
        blocks, start = self._of(count)
        parts = [block.host.random((*rest, ROWS)) for block in blocks]
        return np.concatenate(parts, axis=-1)[..., start : start + count]

    def beta(self, alpha: float, count: int) -> NDArray[np.float64]:
        """A number of the beta distribution (alpha, alpha) for each row, on the host."""
        blocks, start = self._of(count)
        return np.concatenate([block.host.beta(alpha, alpha, ROWS) for block in blocks])[start : start + count]

    def chosen(self, count: int, rate: float) -> Tensor:
        """bool [count], each True with probability ``rate``."""
        return self.tensor(self.random(count) < rate)

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1); the first axis are the rows."""
        return self._drawn(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """float32, standard normal; the first axis are the rows."""
        return self._drawn(torch.randn, shape)

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        count, *rest = shape
        blocks, start = self._of(count)
        parts = [draw((ROWS, *rest), generator=block.device, device=self.device) for block in blocks]
        return torch.cat(parts)[start : start + count]

    def _of(self, count: int) -> tuple[list[_Block], int]:
        """The blocks that hold ``count`` rows, and the place of the first row in the first block."""
        low, high = self.first // ROWS, -(-(self.first + count) // ROWS)
        return [self._block(number) for number in range(low, max(low + 1, high))], self.first % ROWS

    def _block(self, number: int) -> _Block:
        if number not in self._blocks:
            host = self._host(1 + number)
            seed = int(host.integers(1 << 62))
            self._blocks[number] = _Block(host, torch.Generator(self.device).manual_seed(seed))
        return self._blocks[number]

    def _host(self, number: int) -> np.random.Generator:
        seed, step, view = self._place
        return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, view, number]))
