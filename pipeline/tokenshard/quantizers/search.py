"""Nearest-codeword search over float32 vectors: an exact one for encoding, a fast one for training.

The exact one adds the terms of a distance one after the other, each operation rounded once (no fused multiply-add),
so equal inputs give equal ids on any machine, in any batch, with any number of threads. Ties go to the lowest id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenshard.compiled import kernel

_CHUNK = 1 << 24
"""Distances held at a time."""


def nearest(z: Tensor, codebook: Tensor, penalty: Tensor | None = None) -> Tensor:
    """int64 [N]: argmin over j of |z - codebook[j]|² + penalty[j], for float32 z [N, d] and codebook [K, d]."""
    if penalty is None:
        penalty = torch.zeros(len(codebook), device=z.device)
    if z.device.type == "cpu":
        ids = np.empty(len(z), np.int64)
        columns = np.ascontiguousarray(codebook.detach().numpy().T)
        _nearest(np.ascontiguousarray(z.detach().numpy()), columns, penalty.detach().contiguous().numpy(), ids)
        return torch.from_numpy(ids)
    step = max(1, _CHUNK // len(codebook))
    return torch.cat(
        [_nearest_chunk(part, codebook, penalty) for part in torch.split(z, step)] or [z.new_empty(0).long()]
    )


def nearest_in_training(z: Tensor, codebook: Tensor, penalty: Tensor | None = None) -> Tensor:
    """As :func:`nearest`, through one matrix product: ties and the last bits are not promised."""
    bias = codebook.square().sum(1) if penalty is None else codebook.square().sum(1) + penalty
    step = max(1, 8 * _CHUNK // len(codebook))
    return torch.cat([torch.addmm(bias, part, codebook.T, alpha=-2).argmin(1) for part in torch.split(z, step)])


def _nearest_chunk(z: Tensor, codebook: Tensor, penalty: Tensor) -> Tensor:
    distances = torch.zeros(len(z), len(codebook), device=z.device)
    for axis in range(z.shape[1]):
        difference = z[:, axis, None] - codebook[:, axis]
        distances += difference * difference
    distances += penalty
    least = distances.amin(1, keepdim=True)
    # argmin does not say which of equal minima it returns
    places = torch.arange(len(codebook), device=z.device)
    return torch.where(distances == least, places, len(codebook)).amin(1)


@kernel(error_model="numpy")
def _nearest(z: NDArray[Any], columns: NDArray[Any], penalty: NDArray[Any], ids: NDArray[np.int64]) -> None:
    count = columns.shape[1]
    distances = np.empty(count, np.float32)
    for row in range(z.shape[0]):
        distances[:] = 0
        for axis in range(columns.shape[0]):
            value = z[row, axis]
            for j in range(count):
                difference = value - columns[axis, j]
                distances[j] += difference * difference
        best = 0
        least = distances[0] + penalty[0]
        for j in range(1, count):
            distance = distances[j] + penalty[j]
            if distance < least:
                least = distance
                best = j
        ids[row] = best
