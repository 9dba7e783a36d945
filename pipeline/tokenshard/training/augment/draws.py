"""Randomness of a training step: a pure function of (seed, step, rank), so that a run can go on anywhere."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Draws:
    """Random numbers of one step. Few numbers a sample are drawn on the host, many on the device."""

    def __init__(self, seed: int, step: int, device: torch.device | str = "cpu", rank: int = 0) -> None:
        self.device = torch.device(device)
        self.rng = np.random.Generator(np.random.Philox(key=[seed, (step << 20) + rank]))
        self.word = int(self.rng.integers(1 << 62))
        """a seed for everything else that is random in the step, e.g. dropout"""
        self.generator = torch.Generator(self.device).manual_seed(self.word ^ 1)

    def tensor(self, values: NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_]) -> Tensor:
        """Numbers of the host on the device; floating point ones as float32."""
        host = torch.from_numpy(values.astype(np.float32) if values.dtype.kind == "f" else values)
        return host.to(self.device, non_blocking=True)

    def chosen(self, count: int, rate: float) -> Tensor:
        """bool [count], each True with probability ``rate``."""
        return self.tensor(self.rng.random(count) < rate)

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """float32, standard normal."""
        return torch.randn(shape, generator=self.generator, device=self.device)
