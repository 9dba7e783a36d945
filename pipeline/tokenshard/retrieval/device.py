"""MaxSim by matrix products on a device of torch, over vectors in half precision: what a GPU is good at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.retrieval.compression.base import Scorer
from tokenshard.retrieval.exact import Multivectors, Vectors

if TYPE_CHECKING:
    import torch

_SIMILARITIES = 1 << 26
"""Held at a time."""


@dataclass(frozen=True)
class DeviceScorer(Scorer):
    """Vectors [N, d] on a device; float16, on CPUs float32."""

    vectors: torch.Tensor
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, pages: Multivectors, device: str) -> Self:
        """Pages brought to the device."""
        import torch

        kind = torch.float32 if device == "cpu" else torch.float16
        return cls(torch.from_numpy(pages.vectors).to(device, kind), pages.offsets)

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes

    def prepare(self, query: Vectors) -> torch.Tensor:
        import torch

        return torch.from_numpy(query).to(self.vectors)

    def score(self, prepared: torch.Tensor, pages: NDArray[np.int64], out: Vectors) -> None:
        import torch

        lengths = self.offsets[pages + 1] - self.offsets[pages]
        ends = np.cumsum(lengths)
        most, first = max(1, _SIMILARITIES // len(prepared)), 0
        while first < len(pages):
            before = int(ends[first] - lengths[first])
            last = max(first + 1, int(np.searchsorted(ends, before + most, "right")))
            mine = slice(first, last)
            rows = np.repeat(self.offsets[pages[mine]] - (ends[mine] - lengths[mine]), lengths[mine])
            rows += np.arange(before, int(ends[last - 1]))
            device = self.vectors.device
            similar = prepared @ self.vectors[torch.from_numpy(rows).to(device)].T
            page = torch.from_numpy(np.repeat(np.arange(last - first), lengths[mine])).to(device)
            best = similar.new_full((len(prepared), last - first), float("-inf"))
            best.scatter_reduce_(1, page.expand_as(similar), similar, "amax")
            out[mine] = best.float().sum(0).cpu().numpy()
            first = last
